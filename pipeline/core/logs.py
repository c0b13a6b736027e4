"""What is common to log lines and printed lines: a prefix, and no character that can control a terminal.

Hosts, file names, texts and messages of servers come from outside. `printable` makes them harmless. It belongs where
lines leave the program, so that no message needs it where it is written.
"""

import contextlib
import logging
import re
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


_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


_ADDRESS = re.compile(r"(<[\w.<>]+(?: [\w.<>]+)?) at 0x[0-9a-f]+>")
"""The address in Python's description of an object, such as `<_io.BytesIO object at 0x7f12>`: it tells nobody anything,
and makes equal messages different."""


def printable(text: str) -> str:
    r"""The text with an escape, such as `\x1b`, in place of each character that can control a terminal or mislead.

    These are control characters except line breaks and tabs, bidirectional and invisible formatting characters, and
    surrogates, which cannot be encoded. Addresses of Python objects are left out.
    """
    escaped = _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return _ADDRESS.sub(r"\1>", escaped)
