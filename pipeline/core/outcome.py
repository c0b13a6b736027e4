"""What a stage did, and errors as one line."""

from dataclasses import dataclass, field
from typing import Any

from lotlip_data.manifests.errors import UserError


@dataclass
class Outcome:
    """What a stage did. `failed` has a line for each thing that it could not do; `figures` are for scripts."""

    did_something: bool
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def one_line(error: Exception) -> str:
    """One line of what a task ended in: a message for people as it is, the last line of anything else with its type."""
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
