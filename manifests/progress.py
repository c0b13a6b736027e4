"""Progress bars with the estimated time left, for every stage: on a terminal and in a notebook, and nowhere else.

Stages of every package call `progress_bar`, so this module lies at the bottom of the layers. A log line that says the
same as a bar (one per shard, say) is logged with `extra=SHOWN_BY_BAR`: the command line hides it from the screen while
bars are visible, and a log file keeps it.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SHOWN_BY_BAR = {"shown_by_bar": True}
"""`extra` of a log line that repeats what a progress bar shows."""

_ENABLED: ContextVar[bool] = ContextVar("progress_bars", default=True)


@contextlib.contextmanager
def progress_bars(enabled: bool) -> Iterator[None]:
    """While this is entered, allow or forbid progress bars."""
    token = _ENABLED.set(enabled)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def bars_visible() -> bool:
    """Whether `progress_bar` draws: bars are allowed, and standard error is a terminal or this is a notebook."""
    return _ENABLED.get() and (_in_notebook() or sys.stderr.isatty())


def progress_bar(description: str, total: int | None, unit: str, initial: int = 0, visible: bool = True) -> "tqdm[Any]":
    """A tqdm bar, which draws nothing where bars are not visible. Use it in a `with` statement.

    Args:
        description: What is in progress, such as `download` or a captioner's name.
        total: Number of units in all, or None where it is not known.
        unit: What is counted, in the singular, such as `shard`.
        initial: Units that an earlier call completed. They do not count for the rate.
        visible: False where another process shows the same bar.
    """
    size: dict[str, Any] = {}
    if _in_notebook():
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm

        size = {"dynamic_ncols": True} if _terminal_width() else {"ncols": 80, "nrows": 25}
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        disable=not (visible and bars_visible()),
        smoothing=0.1,  # the ETA follows the mean rate more than the last unit's
        **size,
    )


def is_shown_by_bar(record: logging.LogRecord) -> bool:
    """Whether a bar on the screen shows what this log record says."""
    return getattr(record, "shown_by_bar", False) and bars_visible()


def _terminal_width() -> int:
    """Columns of the terminal on standard error; 0 where it has no terminal, or the terminal does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal, or a stream without a file
        return 0


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
