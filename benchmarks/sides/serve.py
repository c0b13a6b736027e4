"""The protocol between a side and the benchmark: the side loads its engine once, then captions all images per round.

This module uses the standard library only, because one side runs in an environment without this project. The module of
a side ends with

    if __name__ == "__main__":
        serve(start)

`start(job)` loads the engine and returns `run`. `run(number)` captions all images of the job and returns `results`.
`results()` reads the captions after the measured time: {key: (text, number of tokens)}. The answer to a round is a line
with its seconds, and then a line with the captions.
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
    """Read the job from the file in argv, then run one round per line of standard input, and print each as JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the output of libraries goes to the log
    job = json.loads(Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    run = start(job)
    print(json.dumps({"seconds": time.perf_counter() - started}), file=answers)
    for line in sys.stdin:
        started = time.perf_counter()
        results = run(int(line))
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds}), file=answers)
        print(json.dumps({"captions": results()}), file=answers)
