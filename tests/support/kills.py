"""Ends code just before a change of the storage, as SIGKILL would."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from lotlip_data.manifests import storage


class Killed(BaseException):
    """Stands for SIGKILL: no code of a stage catches it."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Killed just before the `step`-th change of the storage from now on."""
    steps = count()

    def killing(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(steps) >= step:
                raise Killed
            return change(*arguments)

        return call

    for name in ("create", "create_from_file", "replace", "replace_from_file", "remove"):
        monkeypatch.setattr(storage, name, killing(getattr(storage, name)))
