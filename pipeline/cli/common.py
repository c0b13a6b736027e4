"""What the commands share: arguments, exit codes, and the frame that runs a command and reports its errors.

Importing this module imports Typer and the standard library only, so that `lotlip-data --help` answers at once. Each
command imports what it needs when it is called.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lotlip_data.pipeline.cli.console import Console, Verbosity, show_log, verbosity
from lotlip_data.pipeline.cli.process import INTERRUPTED, lasting_streams, stopping_on_signals

if TYPE_CHECKING:
    from lotlip_data.manifests.manifest import Manifest
    from lotlip_data.pipeline.core.outcome import Outcome

FAILED, INVALID = 1, 2
"""Exit codes: a failure, and invalid arguments or configuration. Success is 0, an interruption INTERRUPTED."""

ManifestFile = Annotated[
    str, typer.Argument(metavar="MANIFEST", help="The manifest, a YAML file: a path or an fsspec URL.")
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's folder: a path or an fsspec URL.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and all else to standard error.")]


@contextlib.contextmanager
def command(name: str, as_json: bool, run_url: str | None = None, silent: bool = False) -> Iterator[Console]:
    """Run a command: show its log, report its errors in one line each, and set the exit code.

    Args:
        name: The command's name.
        as_json: Whether `--json` is given.
        run_url: The run that the command writes to. Its `logs/` get a copy of the output, and files that killed
            processes left there are removed first.
        silent: Print errors only.
    """
    from lotlip_data.manifests.errors import UserError
    from lotlip_data.manifests.progress import progress_bars
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.manifests.storage import remove_stale_scratch

    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread that outlives a command must not start Ray again
    console = Console(name, as_json, silent)
    bars = not (as_json or silent or verbosity.get() is Verbosity.QUIET)
    code = 0
    with lasting_streams(), stopping_on_signals() as stop:
        try:
            with show_log(console), progress_bars(bars):
                if run_url is not None:
                    remove_stale_scratch(Run.at(run_url).url)
                yield console
        except UserError as error:
            console.error(str(error))
            code = INVALID
        except OSError as error:  # a storage, a disk or the network
            console.error(_describe(error))
            code = FAILED
        except KeyboardInterrupt as interrupt:
            stop.finishing = True
            if not interrupt.args:  # a training has already said at which step it resumes
                console.print("stopped. Committed work is kept; run the same command again to resume.")
            code = INTERRUPTED
        finally:
            if run_url is not None:
                with contextlib.suppress(OSError, UserError):  # the screen has it all
                    console.save(Run.at(run_url))
    if code:
        raise typer.Exit(code)


_WRONG_PATH = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EPERM, errno.EACCES, errno.EXDEV, errno.ENODEV, errno.ENXIO),
}
"""What a storage answers for a path that cannot be used, however often it is tried."""


def _describe(error: OSError) -> str:
    """The error in one line. For a folder that cannot be written to, it names the folder and not the file in it."""
    from lotlip_data.manifests.storage_retry import DiskError, disk_error

    if isinstance(error, DiskError):
        return str(error)
    file_name = str(error.filename or "")
    # Path.is_dir raises where access is denied.
    folder = next((str(path) for path in Path(file_name).parents if os.path.isdir(path)), "")  # noqa: PTH112
    denied = os.access(folder, os.X_OK) and not os.access(folder, os.W_OK) and not os.path.lexists(file_name)
    if folder and (refused := disk_error(error, folder, denials=denied)):
        return str(refused)
    if error.errno in _WRONG_PATH:
        advice = "Check the path and its permissions; another try gives the same error."
        return f"{file_name or error}: {error.strerror}. {advice}"
    return f"{error}. Committed work is kept; run the same command again to resume."


def finish(console: Console, outcome: "Outcome", run_url: str | None = None) -> None:
    """Print the outcome of a command, and the next command. Exits with 1 where something failed.

    Args:
        console: The console of the command.
        outcome: What the command did.
        run_url: The run whose next command is named.
    """
    console.result(outcome.figures)
    console.summarise(outcome.summary)
    if outcome.failed:
        raise typer.Exit(FAILED)
    if run_url is not None and verbosity.get() is not Verbosity.QUIET:
        console.print(f"next: {_next_command(run_url)}")


def _next_command(run_url: str) -> str:
    from lotlip_data.pipeline import inspection

    return str(inspection.status(run_url).figures["next"])


def load_validated_manifest(path: str) -> "Manifest":
    """The manifest in the YAML file `path`. Raises UserError if one of its captioners or trainings is not valid."""
    from lotlip_data.pipeline.stages import load_manifest

    return load_manifest(path)
