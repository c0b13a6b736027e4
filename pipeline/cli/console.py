"""The output of a command: results, errors and log lines on the screen, and a copy in the run's `logs/`.

Results and errors are printed with `Console`. Everything else is logged with the standard `logging` module by the stage
that does the work, and `show_log` puts it on the screen: warnings only after `--quiet`, debug lines too after
`--verbose`. The copy in `logs/` holds the results, the errors and every log line from INFO in each case.
"""

import contextlib
import enum
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from lotlip_data.manifests.run_layout import Run


SCREEN_LINES = 20
"""Lines that stand on the screen for sure. A summary does not repeat them."""


class Verbosity(enum.Enum):
    """The lowest level of the log lines on the screen."""

    QUIET = logging.WARNING
    NORMAL = logging.INFO
    VERBOSE = logging.DEBUG


verbosity: ContextVar[Verbosity] = ContextVar("verbosity", default=Verbosity.NORMAL)
"""What `--quiet` and `--verbose` of the current command line say."""


class Console:
    """Prints the results and errors of a command, and keeps every line for `save`.

    Args:
        command: The command's name, which is part of the folder's name in `logs/`.
        json_output: Print lines to standard error, and only `result` to standard output.
        silent: Print errors only. For the processes of a training other than the first.
    """

    def __init__(self, command: str, json_output: bool = False, silent: bool = False) -> None:
        self._silent = silent
        self._folder = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{command}-{os.getpid()}"
        self._lines: list[str] = []
        self._shown: deque[str] = deque(maxlen=SCREEN_LINES)
        self._json = json_output

    def print(self, line: str = "", colour: str = "") -> None:
        """Print one line of a result for people, with its first word in a colour where the screen is a terminal."""
        if not self._silent:
            self.keep(line)
            self.show(line, colour)

    def summarise(self, lines: Iterable[str]) -> None:
        """Print the lines of a result, except those that the log has just put on the screen."""
        for line in lines:
            if not line or not self._was_shown(line):
                self.print(line)

    def _was_shown(self, line: str) -> bool:
        """Whether the last lines on the screen have this one, perhaps without the name of its stage before it."""
        rest = line.strip()
        while rest:
            if rest in self._shown:
                return True
            rest = rest.partition(": ")[2]
        return False

    def error(self, line: str) -> None:
        """Print an error, in whichever process it occurred."""
        self._silent = False
        self.print(f"error: {line}")

    def result(self, figures: dict[str, Any]) -> None:
        """Print the figures of a command as JSON where `--json` is given."""
        if self._json and not self._silent:
            print(json.dumps(figures, indent=1, default=str), flush=True)
            if failure := getattr(sys.stdout, "failure", None):
                raise OSError(f"the result cannot be written to standard output ({failure})")

    def keep(self, line: str) -> None:
        """Keep a line, with the time, for the log file."""
        from lotlip_data.pipeline.core.logs import printable

        if not self._silent:
            self._lines.append(f"{time.strftime('%H:%M:%S')} {printable(line)}")

    def show(self, line: str, colour: str = "") -> None:
        """Put a line on the screen, above a progress bar if there is one."""
        if self._silent:
            return
        from tqdm import tqdm

        from lotlip_data.pipeline.core.logs import printable

        stream = sys.stderr if self._json else sys.stdout
        text = printable(line)
        if colour and stream.isatty() and not os.environ.get("NO_COLOR"):
            word, space, rest = text.partition(" ")
            text = typer.style(word, fg=colour) + space + rest
        tqdm.write(text, file=stream)
        stream.flush()
        self._shown.append(line.strip())

    def save(self, run: "Run") -> None:
        """Write the kept lines to a new folder of the run's `logs/`. Does nothing where the folder holds no run."""
        from lotlip_data.manifests import storage

        if self._lines and storage.exists(run.manifest):
            text = "\n".join(self._lines) + "\n"
            storage.replace(run.log(self._folder), text.encode())


class _ConsoleHandler(logging.Handler):
    """Keeps log lines from INFO and shows those of the chosen verbosity.

    Of messages that differ in numbers only, such as one per shard, the screen shows the first SHOWN_OF_A_KIND, and the
    first one of warnings: the summary counts them. The log file has all of them.
    """

    SHOWN_OF_A_KIND = 3

    def __init__(self, console: Console) -> None:
        from lotlip_data.pipeline.core.logs import PrefixFilter

        super().__init__()
        self._console = console
        self._shown = verbosity.get()
        self.addFilter(PrefixFilter())
        self._plain = logging.Formatter("%(prefix)s%(message)s")
        self._detailed = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(prefix)s%(message)s")
        self._kinds: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        from lotlip_data.manifests.progress import is_progress_line, is_shown_by_bar, is_summary_line

        is_progress = is_progress_line(record)
        if record.levelno >= logging.INFO and not is_progress:
            self._console.keep(self._plain.format(record))
        if self._shown is Verbosity.VERBOSE:
            self._console.show(self._detailed.format(record))
        elif record.levelno >= self._shown.value and not is_shown_by_bar(record):
            line = self._plain.format(record)
            most = 1 if record.levelno >= logging.WARNING else self.SHOWN_OF_A_KIND
            if is_progress or is_summary_line(record) or self._is_new(line, most):
                self._console.show(line)

    def _is_new(self, line: str, most: int) -> bool:
        """Whether to show a line: `most` of each kind. Another line says that there are more."""
        from lotlip_data.manifests.wording import kind

        self._kinds[kind(line)] += 1
        if self._kinds[kind(line)] == most + 1:
            self._console.show(f"(further lines like `{line[:60]}…` are in the log only)")
        return self._kinds[kind(line)] <= most


@contextlib.contextmanager
def show_log(console: Console) -> Iterator[None]:
    """Send the log lines of `lotlip_data` to the console while this is entered."""
    handler, package = _ConsoleHandler(console), logging.getLogger("lotlip_data")
    level, propagate = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(min(logging.INFO, verbosity.get().value))
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagate


@contextlib.contextmanager
def redrawing(enabled: bool) -> Iterator[Callable[[Console, list[str]], None]]:
    """Yield a function that shows lines in place of those before; at the end, the last ones stay on the screen.

    Args:
        enabled: False prints the lines below each other, as it is done where standard output is no terminal.
    """
    from lotlip_data.pipeline.core.logs import printable

    if not enabled or not sys.stdout.isatty():
        yield _print_all
        return
    last: list[str] = []

    def show(console: Console, lines: list[str]) -> None:
        last[:] = lines
        columns, rows = shutil.get_terminal_size()
        shown = [f"{printable(line)[:columns]}\033[K" for line in lines[: rows - 1]]
        sys.stdout.write("\033[H" + "\n".join(shown) + "\n\033[J")
        sys.stdout.flush()

    sys.stdout.write("\033[?1049h")  # the terminal's second screen: the first one keeps what it shows
    try:
        yield show
    except KeyboardInterrupt:
        raise KeyboardInterrupt("") from None  # the usual end, about which there is nothing to say
    finally:
        sys.stdout.write("\033[?1049l")
        print(printable("\n".join(last)), flush=True)


def _print_all(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line)
