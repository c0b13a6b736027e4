"""Progress of the stages: bars on a terminal and in a notebook, and a line now and then everywhere else.

Stages of every package call `progress_bar`, so this module lies at the bottom of the layers. A log line that says the
same as a bar (one per shard, say) is logged with `extra=SHOWN_BY_BAR`: the command line keeps it off the screen, and a
log file has it. Where bars cannot be drawn, a bar logs a line about every twentieth of the work, so that the output in
a file has tens of lines for any number of shards.

A worker process has no screen. Its bars are sent to the driver (`forward_progress`), which shows them.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

from lotlip_data.manifests import wording

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

SHOWN_BY_BAR = {"shown_by_bar": True}
"""`extra` of a log line that repeats what a progress bar shows."""
SUMMARY_LINE = {"summary_line": True}
"""`extra` of the lines with which a stage ends. The screen shows each of them."""
PROGRESS_LINE = {"progress_line": True}
"""`extra` of a line that stands for a bar where no bar is drawn. Log files leave it out."""

LINES = 20
"""Number of lines that stand for a bar, if the work takes less than this number of LINE_SECONDS."""
QUIET_SECONDS = 5.0
"""Work that takes less has no such lines: its summary follows at once."""
LINE_SECONDS = 600.0
"""Longest time between two such lines, if there is progress."""
FORWARD_SECONDS = 1.0
"""Shortest time between two snapshots that a worker sends."""
NARROWEST_BAR = 6
"""Columns of the bar itself below which notes at its end are left out."""

_ENABLED: ContextVar[bool] = ContextVar("progress_bars", default=True)


@dataclass(frozen=True)
class Snapshot:
    """The state of a bar in a worker process."""

    description: str
    done: float
    total: float | None
    unit: str
    notes: tuple[str, ...] = ()
    counts: Mapping[str, float] | None = None
    """More counts of the work, by name; the driver adds them up over its workers."""


_FORWARD: ContextVar[Callable[[Snapshot], None] | None] = ContextVar("forward_progress", default=None)


@contextlib.contextmanager
def progress_bars(enabled: bool) -> Iterator[None]:
    """While this is entered, allow or forbid progress bars."""
    token = _ENABLED.set(enabled)
    try:
        yield
    finally:
        _ENABLED.reset(token)


@contextlib.contextmanager
def forward_progress(send: Callable[[Snapshot], None]) -> Iterator[None]:
    """While this is entered, `send` gets the state of each bar, at most once per FORWARD_SECONDS, and nothing is shown.

    For worker processes.
    """
    token = _FORWARD.set(send)
    try:
        yield
    finally:
        _FORWARD.reset(token)


def bars_visible() -> bool:
    """Whether `progress_bar` draws: bars are allowed, and standard error is a terminal or this is a notebook."""
    return _ENABLED.get() and _FORWARD.get() is None and (_in_notebook() or sys.stderr.isatty())


class Progress:
    """The progress of one piece of work; `progress_bar` makes it. Threads may share it."""

    def __init__(self, description: str, total: float | None, unit: str, initial: float, visible: bool) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, initial
        self._initial, self._started = initial, time.monotonic()
        self._notes: tuple[str, ...] = ()
        self._counts: Mapping[str, float] | None = None
        self._lock = threading.Lock()
        self._send = _FORWARD.get() if visible else None
        self._sent_at = -FORWARD_SECONDS
        self._bar: Any = _tqdm(description, total, unit, initial) if visible and bars_visible() else None
        self._logs = visible and self._bar is None and self._send is None
        self._line_at, self._line_time = self._next_line(initial), self._started
        _OPEN.add(self)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, units: float = 1) -> None:
        """Count further units."""
        with self._lock:
            self.done += units
            if self._bar is not None:
                self._bar.update(units)
            elif self._send:
                self._forward(self._send)
            elif self._logs:
                self._log_if_due()

    def advance_to(self, done: float) -> None:
        """Set the number of units that are done. It never decreases, and ends at the total."""
        units = min(done, done if self.total is None else self.total) - self.done
        if units > 0:
            self.update(units)

    def set_total(self, total: float) -> None:
        """Replace the number of units in all, of work that grows while it is done."""
        with self._lock:
            self.total = total
            self._line_at = self._next_line(self.done)
            if self._bar is not None:
                self._bar.total = total

    def note(self, *notes: str, counts: Mapping[str, float] | None = None) -> None:
        """Replace what stands after the count, the most important first, such as `97% downloaded`.

        Args:
            notes: Short texts.
            counts: Further counts of the work, for the driver of this worker.
        """
        self._notes, self._counts = tuple(note for note in notes if note), counts
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._fitting_notes()), refresh=False)

    def tick(self) -> None:
        """Draw the bar again, so that its clock moves while nothing is counted."""
        if self._bar is not None:
            self._bar.refresh()

    def restart_clock(self) -> None:
        """Count the time from now on: the time before was not spent on this work."""
        self._started = self._line_time = time.monotonic()
        self._initial = self.done
        if self._bar is not None:
            self._bar.start_t = self._bar.last_print_t = self._bar._time()
            self._bar.initial = self._bar.n

    def close(self) -> None:
        """Leave the bar as it is."""
        _OPEN.discard(self)
        if self._bar is not None:
            self._bar.close()

    def _forward(self, send: Callable[[Snapshot], None]) -> None:
        if time.monotonic() >= self._sent_at + FORWARD_SECONDS:
            self._sent_at = time.monotonic()
            send(Snapshot(self.description, self.done, self.total, self.unit, self._notes, self._counts))

    def _next_line(self, done: float) -> float:
        """The count from which the next line is due."""
        if not self.total:
            return float("inf")
        share = self.total / LINES
        return min(self.total, (int(done / share + 1e-9) + 1) * share)

    def _log_if_due(self) -> None:
        now = time.monotonic()
        if now < self._started + QUIET_SECONDS:
            return
        if self.done >= self._line_at or now >= self._line_time + LINE_SECONDS:
            self._line_at, self._line_time = self._next_line(self.done), now
            logger.info(self._line(now), extra=PROGRESS_LINE)

    def _line(self, now: float) -> str:
        unit = wording.plural(2, self.unit)
        parts = [f"{self.description}: {self.done:,.0f} {unit}"]
        if self.total:
            parts = [f"{self.description}: {self.done:,.0f} of {self.total:,.0f} {unit} ({self.done / self.total:.0%})"]
        rate = (self.done - self._initial) / max(now - self._started, 1e-3)
        parts += [*self._notes, wording.rate(rate, unit)]
        if self.total and rate and self.done < self.total:
            parts.append(f"{wording.duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)

    def _fitting_notes(self) -> Sequence[str]:
        """The first notes, as many as fit on the line of the bar."""
        columns = _terminal_width() or 80
        counts = 2 * len(f"{self.total or 0:,.0f}") + len(self.unit) + len("s, 00:00:00 left, 99.99/s")
        room = columns - len(self.description) - len(" 100%||/ ") - counts - NARROWEST_BAR
        fitting = list[str]()
        for note in self._notes:
            room -= len(note) + 2
            if room < 0 and fitting:
                break
            fitting.append(note)
        return fitting


_OPEN: "WeakSet[Progress]" = WeakSet()
"""The bars of this process that are not closed."""


def progress_bar(
    description: str, total: float | None, unit: str, initial: float = 0, visible: bool = True
) -> Progress:
    """A bar, or lines where bars cannot be drawn. Use it in a `with` statement.

    Args:
        description: What is in progress, such as `download` or a captioner's name.
        total: Number of units in all, or None where it is not known.
        unit: What is counted, in the singular, such as `shard`.
        initial: Units that an earlier call completed. They do not count for the rate.
        visible: False where another process shows the same bar.
    """
    return Progress(description, total, unit, initial, visible)


def track(items: Sequence[Item], description: str, unit: str) -> Iterator[Item]:
    """Yield the items, with a bar that counts those that are done."""
    with progress_bar(description, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def waiting_for(description: str) -> Iterator[None]:
    """Say what is waited for while this is entered. On a terminal, a clock shows that the program is alive.

    The time does not count for the rates of open bars.

    Args:
        description: Such as `starting Ray on this machine`.
    """
    logger.info(f"{description} …")
    try:
        with _clock(description) if bars_visible() else contextlib.nullcontext():
            yield
    finally:
        for bar in list(_OPEN):
            bar.restart_clock()


@contextlib.contextmanager
def _clock(description: str) -> Iterator[None]:
    ended = threading.Event()
    from tqdm import tqdm

    clock = tqdm(desc=description, bar_format="{desc}: {elapsed}", leave=False, ncols=_terminal_width() or 80)

    def show() -> None:
        while not ended.wait(0.5):
            clock.refresh()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        clock.close()


def _tqdm(description: str, total: float | None, unit: str, initial: float) -> Any:
    """A bar with the count, the time left, the rate and the notes."""
    size: dict[str, Any] = {}
    if _in_notebook():
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm

        size = {"dynamic_ncols": True} if _terminal_width() else {"ncols": 80, "nrows": 25}
    units = wording.plural(2, unit)
    layout = (
        f"{{desc}} {{percentage:3.0f}}%|{{bar}}|{{n:,.0f}}/{{total:,.0f}} {units}, {{remaining}} left, "
        "{rate_noinv_fmt}{postfix}"
    )
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit="" if total else unit,
        bar_format=layout if total else None,
        smoothing=0.1,  # the time left follows the mean rate more than the last unit's
        **size,
    )


def is_shown_by_bar(record: logging.LogRecord) -> bool:
    """Whether a bar, or the lines that stand for one, show what this log record says."""
    return bool(getattr(record, "shown_by_bar", False))


def is_summary_line(record: logging.LogRecord) -> bool:
    """Whether this log record is part of the summary of a stage."""
    return bool(getattr(record, "summary_line", False))


def is_progress_line(record: logging.LogRecord) -> bool:
    """Whether this log record stands for a bar."""
    return bool(getattr(record, "progress_line", False))


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
