"""Processes that write at the same time."""

import subprocess
import sys
from collections.abc import Sequence


def outputs_of_writers(code: str, arguments: Sequence[Sequence[str]]) -> list[str]:
    """What a process of `code` printed for each of those arguments.

    Each prints "ready" and waits for a line; once all have, each gets its line, so that none is done before another
    has begun, however long their starts take.
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
