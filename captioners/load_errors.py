"""Says in one sentence why a captioner does not load: its name, its model, the cause and the remedy.

transformers, vLLM and the hub raise errors of any type, some of which do not survive Ray's pickling. `explained` turns
them into two types: UserError for what only a person can fix, and EngineStartError for what another try may get over.
"""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, EngineDead
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.errors import UserError

MAX_CAUSE = 400
"""Largest number of characters of a library's own words in a message."""


class EngineStartError(RuntimeError):
    """An engine did not start; the message has the captioner, its model and the cause. Another try may succeed."""


class EngineProcessError(RuntimeError):
    """An engine's process did not start; the message is the exception that ended it, as it stands in its output."""

    _LASTING = ("ValueError", "TypeError", "KeyError", "AttributeError", "AssertionError", "ImportError")
    _PASSING = ("Free memory on device",)  # of a process that ended a moment ago

    @property
    def may_pass(self) -> bool:
        """Whether another try may succeed."""
        text = str(self)
        return not text.startswith(self._LASTING) or any(words in text for words in self._PASSING)


class LoadError(UserError):
    """A captioner cannot be loaded as it is; the message has the captioner, its model, the cause and the remedy."""


@contextlib.contextmanager
def explained(config: CaptionerConfig) -> Iterator[None]:
    """Turn any exception that loading the captioner raises into a UserError or an EngineStartError."""
    try:
        yield
    except EngineStartError:
        raise
    except Exception as error:
        raise explain(error, config) from error


def explain(error: Exception, config: CaptionerConfig) -> UserError | EngineStartError:
    """The exception to raise in place of one that a library raised while it loaded the captioner."""
    where = f"captioner {config.name!r}"
    ours = isinstance(error, ValueError) and _is_ours(error)  # it says all, whatever error it was raised from
    if not ours and (answer := hub.explain(error, config.model, config.revision)):
        return type(answer)(f"{where}: {answer.problem}", answer.remedy)
    if ours or isinstance(error, UserError):
        return LoadError(str(error) if config.name in str(error) else f"{where}: {error}")
    if isinstance(error, EngineDead):
        return EngineStartError(str(error) if config.name in str(error) else f"{where}: {error}")
    cause = describe(error)
    if _may_pass(error):
        return EngineStartError(f"{where}: {config.model} does not load: {cause}")
    remedy = (
        "install it where the engine runs, or use another engine"
        if isinstance(error, ImportError)
        else "check the files of the model and the captioner's settings"
    )
    return LoadError(f"{where}: {config.model} does not load: {cause}; {remedy}")


def describe(error: BaseException) -> str:
    """The type and the words of an error on one line, of at most MAX_CAUSE characters."""
    if isinstance(error, EngineProcessError):
        return shorten(f"the engine's process failed: {error}")
    pydantic_errors = getattr(error, "errors", None)
    if callable(pydantic_errors) and type(error).__name__ == "ValidationError":
        return shorten("; ".join(map(_pydantic_line, pydantic_errors())))
    text = " ".join(str(error).split())
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def shorten(text: str) -> str:
    """The text, cut at MAX_CAUSE characters."""
    return text if len(text) <= MAX_CAUSE else f"{text[: MAX_CAUSE - 1]}…"


def _pydantic_line(problem: dict[str, Any]) -> str:
    field = ".".join(map(str, problem["loc"]))
    text = " ".join(str(problem["msg"]).removeprefix("Value error, ").split())
    return f"{field}: {text}" if field else text


def _is_ours(error: BaseException) -> bool:
    """Whether this project raised the error, whose message then has the cause and the remedy."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith("lotlip_data.")


def _may_pass(error: Exception) -> bool:
    """Whether another try, in a new process or on another machine, may succeed."""
    if isinstance(error, EngineProcessError):
        return error.may_pass
    if isinstance(error, OSError):
        return error.errno is not None or isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, MemoryError | RuntimeError) and not isinstance(error, NotImplementedError | RecursionError)
