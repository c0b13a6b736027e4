"""Run processes that write at the same time."""

import subprocess
import sys
from collections.abc import Sequence


def outputs_of_writers(code: str, arguments: Sequence[Sequence[str]]) -> list[str]:
    """Run one process of `code` per list of arguments at the same time, and return what each printed.

    A process prints "ready" and waits for a line. It gets the line once all processes are ready, so that none ends
    before another one starts.
    """
    writers = [
        subprocess.Popen([sys.executable, "-c", code, *own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for own in arguments
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    printed = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * len(writers)
    return printed
