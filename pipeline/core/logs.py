"""A prefix of log lines, which names the model or captioner that they are about."""

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

_PREFIX: ContextVar[str] = ContextVar("log_prefix", default="")


@contextlib.contextmanager
def log_prefix(name: str) -> Iterator[None]:
    """While this is entered, `PrefixFilter` puts `name: ` before every message of this thread."""
    token = _PREFIX.set(f"{name}: ")
    try:
        yield
    finally:
        _PREFIX.reset(token)


class PrefixFilter(logging.Filter):
    """Sets `record.prefix`, for a handler's format string."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.prefix = _PREFIX.get()
        return True
