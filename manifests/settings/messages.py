"""Turn pydantic's errors into messages that name the setting, what is wrong with it, and the fix.

This is the one place where a `ValidationError` becomes text for a user. Unknown names get a "did you mean".
"""

import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

_LONGEST_VALUE = 80
"""Characters of a wrong value that a message shows."""


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """All problems of a validation in one line, each with the path of its setting.

    Args:
        error: What validating against `model` raised.
        model: The model; its fields are the known settings.
    """
    messages: dict[str, str] = {}
    for problem in _root_problems(error):
        path, known = _locate(model, problem["loc"])
        message = _message(problem, known, model)
        # Each alternative of a union has a problem of its own; the first one says enough. The problem of a whole model
        # has no path: its message names the setting.
        messages.setdefault(path, f"`{path}`: {message}" if path else message)
    return "; ".join(messages.values())


def unknown_name(value: object, known: Iterable[str]) -> str:
    """The message about a name that is none of the `known` ones; the nearest one is suggested."""
    names = [str(name) for name in known]
    nearest = difflib.get_close_matches(str(value), names, 1)
    if nearest:
        return f"{_shown(value)} is unknown; did you mean {nearest[0]!r}? Known are {', '.join(names)}"
    return f"{_shown(value)} is unknown; known are {', '.join(names)}"


def _root_problems(error: ValidationError) -> list[Any]:
    """The problems without consequences: a list with a wrong entry is also too short."""
    problems = error.errors()
    others = [problem["loc"] for problem in problems if problem["type"] != "too_short"]

    def is_consequence(problem: Any) -> bool:
        location = problem["loc"]
        return problem["type"] == "too_short" and any(loc[: len(location)] == location for loc in others)

    return [problem for problem in problems if not is_consequence(problem)]


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The path of a setting, such as `captioners.0.pool`, and the names of all settings that may stand there.

    pydantic adds a step to a location for the alternative of a union that failed. That step is not part of the path.
    """
    models, path, known, in_union = [model], list[str](), list[str](), False
    for step in location:
        if in_union:
            in_union = False
            continue
        if step == "[key]":  # the problem is a key of a mapping, which is the step before
            continue
        path.append(str(step))
        if isinstance(step, int):
            continue
        known = [name for candidate in models for name in (*candidate.model_fields, *_virtual_fields(candidate))]
        annotations = [field.annotation for candidate in models if (field := candidate.model_fields.get(step))]
        in_union = any(map(_is_union, annotations))
        models = [inner for annotation in annotations for inner in _models_in(annotation)] or models
    return ".".join(path), known


def _virtual_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """Keys that a validator of the model replaces by fields."""
    names: tuple[str, ...] = getattr(model, "virtual_fields", ())
    return names


def _is_union(annotation: Any) -> bool:
    alternatives = [argument for argument in get_args(annotation) if argument is not type(None)]
    return get_origin(annotation) in (Union, types.UnionType) and len(alternatives) > 1


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _message(problem: Any, known: list[str], model: type[BaseModel]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_setting(str(problem["loc"][-1]), known, model)
    if kind in _MESSAGES:
        return _MESSAGES[kind](_shown(problem["input"]), context)
    if kind == "literal_error":
        return unknown_name(problem["input"], re.findall(r"'([^']*)'", context["expected"]))
    if kind == "value_error":
        return str(context["error"])  # a validator's own message
    return f"{_shown(problem['input'])} {problem['msg'].removeprefix('Input ').replace('tuple', 'list')}"


def _unknown_setting(name: str, known: list[str], model: type[BaseModel]) -> str:
    """What to write instead: a setting of the same place, or one of this name in another section."""
    plain = _plain(name)
    initials = "".join(word[0] for word in plain.split("_") if word)  # learning_rate is lr
    nearest = (
        [setting for setting in known if _plain(setting) == plain]
        or difflib.get_close_matches(plain, known, 1)
        or [setting for setting in known if setting == initials]
        or _elsewhere(plain, model)
    )
    if nearest:
        return f"there is no such setting; did you mean {' or '.join(f'`{path}`' for path in nearest[:3])}?"
    return f"there is no such setting; known are {', '.join(known)}"


def _elsewhere(plain: str, model: type[BaseModel]) -> list[str]:
    """Settings of this name, or nearly this name, in any section."""
    paths: dict[str, list[str]] = {}
    for path in _paths_of(model):
        paths.setdefault(_plain(path.rpartition(".")[2]), []).append(path)
    nearest = difflib.get_close_matches(plain, paths, 1, cutoff=0.8)
    return paths[nearest[0]] if nearest else []


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").strip("_ ")


def _paths_of(model: type[BaseModel], path: str = "", depth: int = 3) -> Iterator[str]:
    """The paths of all settings below a model, such as `download.timeout`; an entry of a list is `train[]`."""
    for name, field in model.model_fields.items():
        yield f"{path}{name}"
        is_list = get_origin(field.annotation) in (list, tuple)
        if depth:
            for inner in dict.fromkeys(_models_in(field.annotation)):
                yield from _paths_of(inner, f"{path}{name}{'[]' * is_list}.", depth - 1)


def _not_a_mapping(value: str, context: Any) -> str:
    return f"{value} is not a mapping of settings, such as {{name: value}}"


_MESSAGES: dict[str, Callable[[str, Any], str]] = {
    "missing": lambda value, context: "is missing",
    # Only names have patterns.
    "string_pattern_mismatch": lambda value, context: f"{value} may contain only lowercase letters, digits, - and _",
    "greater_than": lambda value, context: f"{value} is too small; it must be above {context['gt']:g}",
    "greater_than_equal": lambda value, context: f"{value} is too small; it must be at least {context['ge']:g}",
    "less_than": lambda value, context: f"{value} is too large; it must be below {context['lt']:g}",
    "less_than_equal": lambda value, context: f"{value} is too large; it must be at most {context['le']:g}",
    "model_type": _not_a_mapping,
    "mapping_type": _not_a_mapping,
    "dict_type": _not_a_mapping,
}
"""Type of pydantic's error → function from the wrong value and the error's context to the message."""


def _shown(value: object) -> str:
    """The value as a message shows it, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
