"""What the functions of the Python API return, and exceptions as one line of text."""

from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests import wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core.logs import printable


class _Readable:
    """An object that prints as its summary, in a notebook too."""

    figures: dict[str, Any]
    lines: list[str]

    @property
    def summary(self) -> list[str]:
        """The lines that the command of the same name prints."""
        return self.lines

    def to_dict(self) -> dict[str, Any]:
        """The figures, as the command prints them with `--json`."""
        return dict(self.figures)

    def __repr__(self) -> str:
        return printable("\n".join(self.summary))


@dataclass(repr=False)
class Outcome(_Readable):
    """What a stage did."""

    did_something: bool
    """False where an earlier call had completed all of it."""
    failed: list[str] = field(default_factory=list)
    """One line per unit that failed, with the reason. The next call tries these again."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Counts and results by name."""
    stage: str = ""
    lines: list[str] = field(default_factory=list)
    """The figures for people."""

    @property
    def summary(self) -> list[str]:
        """The figures for people, and what failed: lines that differ in numbers only are one line with their number."""
        if self.failed:
            groups = (f"  {line}" for line in wording.group(self.failed))
            return [*self.lines, f"{self.stage}: {len(self.failed):,} failed", *groups]
        if not self.did_something:
            return [*self.lines, f"{self.stage}: nothing to do, all of it is done"]
        return self.lines


@dataclass(repr=False)
class Inspection(_Readable):
    """What was read from a manifest, a run or a model, without changing a run."""

    figures: dict[str, Any]
    lines: list[str]
    """The figures for people, problems included."""
    problems: list[str] = field(default_factory=list)
    """One line per problem, with the remedy."""


def one_line(error: Exception) -> str:
    """The error in one line: the message of a UserError or DiskError, and the type and last line of any other one."""
    if isinstance(error, (UserError, DiskError)):
        return str(error)
    lines = [line.strip() for line in printable(str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
