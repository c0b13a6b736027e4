"""Log messages as a list, where pytest's `caplog` does not reach: in other threads and processes, and in helpers."""

import contextlib
import logging
from collections.abc import Iterator


class _ListHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def captured_messages() -> Iterator[list[str]]:
    """The messages that `lotlip_data` logs while this is entered."""
    handler, package = _ListHandler(), logging.getLogger("lotlip_data")
    package.addHandler(handler)
    try:
        yield handler.messages
    finally:
        package.removeHandler(handler)
