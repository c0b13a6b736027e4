"""What every command has: its usual arguments, its errors told plainly, its exit code.

What a command tells its user, on the screen and in a file of the run's `logs/`.

The manifest that a command is given, with what only later stages look into: nothing runs for days towards a typo.
"""

import contextlib
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.logs import PrefixFilter
from lotlip_data.pipeline.model_stages import train as trainings
from lotlip_data.pipeline.recaptioning.config import resolve_captioners

if TYPE_CHECKING:
    from lotlip_data.manifests.run_layout import Run


FAILED, ASKED_WRONGLY, INTERRUPTED = 1, 2, 130


def _folder(text: str) -> Any:
    return typer.Argument(metavar="RUN", help=text, show_default=False)


ManifestFile = Annotated[str, typer.Argument(help="A YAML file that names the lists: a path or a fsspec URL.")]
RunFolder = Annotated[str, _folder("The run's folder: a path or a fsspec URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON; all else goes to standard error.")]


class _ConsoleHandler(logging.Handler):
    """Hands log records to the console."""

    def __init__(self, console: "Console") -> None:
        super().__init__(logging.INFO)
        self._console = console
        self.addFilter(PrefixFilter())
        self.setFormatter(logging.Formatter("%(prefix)s%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record))


class Console:
    """Prints results and log lines and keeps them; `save` puts them into one folder of the run's logs.

    With `json_output`, the lines go to standard error and the result alone to standard output. A `silent` one, of a
    process beside the first, tells errors alone.
    """

    def __init__(self, command: str, json_output: bool = False, silent: bool = False) -> None:
        self._silent = silent
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{command}-{os.getpid()}"
        self._lines: list[str] = []
        self._json = json_output

    def print(self, line: str = "") -> None:
        if self._silent:
            return
        self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")
        out = sys.stderr if self._json else sys.stdout
        tqdm.write(line, file=out)  # above a progress bar, where there is one
        out.flush()

    def error(self, line: str) -> None:
        """Says what went wrong, whichever process it went wrong in."""
        self._silent = False
        self.print(f"error: {line}")

    def result(self, value: dict[str, Any]) -> None:
        """The command's figures, printed only where a script asked for them."""
        if self._json and not self._silent:
            print(json.dumps(value, indent=1, default=str), flush=True)

    def save(self, run: Run) -> None:
        if self._lines and storage.exists(run.manifest):
            text = "\n".join(self._lines) + "\n"
            storage.replace(run.log(self._name), text.encode())


@contextlib.contextmanager
def command(name: str, as_json: bool, run_url: str | None = None, silent: bool = False) -> Iterator[Console]:
    """Tells errors plainly, keeps the log, and sets the exit code: 0, 1 (something failed) or 2 (asked wrongly)."""
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.manifests.storage import remove_stale_scratch

    console = Console(name, as_json, silent)
    handler, package = _ConsoleHandler(console), logging.getLogger("lotlip_data")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    code = 0
    try:
        if run_url is not None:
            remove_stale_scratch(Run.at(run_url).url)
        yield console
    except UserError as error:
        console.error(str(error))
        code = ASKED_WRONGLY
    except OSError as error:  # a storage, a disk or the network
        console.error(_told(error))
        code = FAILED
    except KeyboardInterrupt as stop:
        if not stop.args:  # a training has told itself from which step it goes on
            console.print("stopped. What is committed stays, and the same command goes on from there.")
        code = INTERRUPTED
    finally:
        package.removeHandler(handler)
        package.propagate = True
        if run_url is not None:
            with contextlib.suppress(OSError, UserError):  # what matters has been said on the screen
                console.save(Run.at(run_url))
    if code:
        raise typer.Exit(code)


def _told(error: OSError) -> str:
    """One line; where nothing may be written, it names the folder and not the scratch file that was tried."""
    named = str(error.filename or "")
    # Path.is_dir raises where one may not look.
    folder = next((str(path) for path in Path(named).parents if os.path.isdir(path)), "")  # noqa: PTH112
    no_room = os.access(folder, os.X_OK) and not os.access(folder, os.W_OK) and not os.path.lexists(named)
    if folder and (error.errno == errno.EROFS or (error.errno in (errno.EACCES, errno.EPERM) and no_room)):
        return f"{folder}: nothing can be written there ({error.strerror}). Make it writable, or name another folder."
    return f"{error}. What is committed stays, and the same command goes on from there."


def existing(run: "Run") -> "Run":
    """The run. Raises UserError where there is neither a manifest nor a dataset, which has been copied perhaps."""
    from lotlip_data.manifests import storage
    from lotlip_data.manifests.manifest import frozen

    if not storage.exists(run.dataset):
        frozen(run)
    return run


def finish(console: Console, outcome: Any, what: str) -> None:
    """The last lines of a stage: what failed, or that there was nothing to do."""
    console.result(outcome.figures)
    if outcome.failed:
        console.print(f"{what}: {len(outcome.failed)} failed")
        for line in outcome.failed:
            console.print(f"  {line}")
        raise typer.Exit(FAILED)
    if not outcome.did_something:
        console.print(f"{what}: nothing to do, all of it is done")


def load_validated_manifest(path: str) -> Manifest:
    """The manifest in the YAML file `path`. Raises UserError where one of its captioners or trainings cannot be."""
    manifest = load(path)
    try:
        if manifest.captioners:  # all captions may be imported
            resolve_captioners(manifest.captioners)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    trainings.check(manifest.train, path)
    return manifest
