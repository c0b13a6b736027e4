"""How a side talks to the benchmark: it loads its engine once and then captions all images whenever it is asked.

Only the standard library: one side runs in an environment without this project. A side's own file ends in

    if __name__ == "__main__":
        serve(start)

`start(job)` loads everything and returns `run`; `run(number)` captions every image of the job and returns `results`,
which reads the captions afterwards, outside the measured time: {key: (text, tokens)}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Results = dict[str, tuple[str, int]]
Start = Callable[[Job], Callable[[int], Callable[[], Results]]]


def serve(start: Start) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log, not among the answers
    job = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    run = start(job)
    print(json.dumps({"seconds": time.perf_counter() - began}), file=answers)
    for line in sys.stdin:
        began = time.perf_counter()
        results = run(int(line))
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "captions": results()}), file=answers)
