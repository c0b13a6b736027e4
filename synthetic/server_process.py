"""Runs a server of this package in a process of its own."""

import subprocess
import sys
from types import TracebackType
from typing import Self


class ServerProcess:
    """A context manager that runs a server until the end of its block.

    The server prints one line once it accepts connections. It ends when its standard input closes, so none stays behind
    a parent that is killed.

    Args:
        name: What messages call the server.
        module: The module of this package that runs it, with the option `--with-parent`.
        options: Its other options.

    Raises:
        RuntimeError: The server does not start.
    """

    def __init__(self, name: str, module: str, *options: str) -> None:
        self._name = name
        self._command = [sys.executable, "-m", f"lotlip_data.synthetic.{module}", *options, "--with-parent"]

    def started(self, line: str) -> None:
        """Take the line that the server has printed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the {self._name} did not start; its exit code is {self._process.wait()}")
        self.started(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()
