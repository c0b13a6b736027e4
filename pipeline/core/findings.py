"""What a check found: its level, and the fix."""

import enum
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)


class Level(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It may fail, or is not known here."""
    ERROR = "error"
    """It would fail."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    subject: str
    """What was checked, such as `captioner 'llava'`."""
    level: Level
    finding: str
    fix: str = ""
    """What to do about it; empty if all is well."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.finding}{'; ' if self.fix else ''}{self.fix}"


def require(checks: Iterable[Check]) -> None:
    """Log the warnings. Raises UserError, with one line for each error, if there is one."""
    errors = []
    for check in checks:
        if check.level is Level.ERROR:
            errors.append(str(check))
        elif check.level is Level.WARNING:
            logger.warning(str(check))
    if errors:
        raise UserError("\n".join(errors))
