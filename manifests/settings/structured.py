"""The setting `structured`: the form that a text must have, and what becomes columns of the dataset.

structured: {choice: [photo, drawing, text]}
structured: {regex: '[A-Z][a-z]+( and [A-Z][a-z]+)*'}
structured:
  json_schema:
    type: object
    properties: {subject: {type: string}, tags: {type: array, items: {type: string}, maxItems: 8}}
    required: [subject, tags]
  columns: [subject, tags]
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator, model_validator

from lotlip_data.manifests.settings.base import SparseSettings

ColumnType = Literal["string", "number", "integer", "boolean", "strings"]
"""Type of a column that holds a key of a JSON object: as in JSON schema, or a list of texts."""

MAX_COLUMN_NAME = 64
_COLUMN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ENDING = re.compile(r"(.*_)?(sub|flags)")
_SCALARS: tuple[ColumnType, ...] = ("string", "number", "integer", "boolean")


class StructuredOutput(SparseSettings):
    """The form of a text. Exactly one of `json_schema`, `regex` and `choice` is set."""

    json_schema: Mapping[str, Any] | None = None
    """JSON Schema (draft 2020-12) of the text, which is then a JSON document. The model writes the keys in the order of
    the schema."""
    regex: str | None = None
    """Regular expression that the whole text matches."""
    choice: tuple[str, ...] | None = None
    """Texts of which the model writes one."""
    columns: tuple[str, ...] = ()
    """Keys of the JSON object that become columns of the dataset, named CAPTIONER_KEY, with the types of `json_schema`:
    string, number, integer, boolean, or array of strings. A text that is not valid has nulls there."""

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if schema is not None:
            _check_schema(schema)
        return schema

    @field_validator("regex")
    @classmethod
    def _is_an_expression(cls, regex: str | None) -> str | None:
        if regex is not None:
            if not regex:
                raise ValueError("is empty")
            try:
                re.compile(regex)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
        return regex

    @field_validator("choice")
    @classmethod
    def _has_texts(cls, choice: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if choice is None:
            return None
        if not choice or any(not text.strip() or text != text.strip() for text in choice):
            raise ValueError("must be a list of texts that are not blank and have no white space around them")
        if repeated := sorted({text for text in choice if choice.count(text) > 1}):
            raise ValueError(f"{repeated[0]!r} is named twice")
        return choice

    @model_validator(mode="after")
    def _has_one_form(self) -> "StructuredOutput":
        given = [name for name in ("json_schema", "regex", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} exclude each other" if given else "says nothing"
            raise ValueError(f"`structured`: {what}; give one of json_schema, regex and choice")
        if self.columns and self.json_schema is None:
            raise ValueError(f"`columns`: {given[0]} has no keys; columns need json_schema")
        _ = self.column_types
        return self

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """The type of each column, in their order. Raises ValueError, which names the key, if it cannot be a column."""
        if not self.columns:
            return {}
        schema = self.json_schema or {}
        properties = schema.get("properties")
        if schema.get("type") != "object" or not isinstance(properties, Mapping):
            raise ValueError("`columns`: json_schema must have the type object and properties")
        if repeated := sorted({key for key in self.columns if self.columns.count(key) > 1}):
            raise ValueError(f"`columns`: {repeated[0]!r} is named twice")
        return {key: _column_type(key, properties) for key in self.columns}

    @property
    def decisive(self) -> dict[str, Any]:
        """What can change a text, for an identity: without the columns, and with the order of the schema's keys."""
        settings = {name: value for name, value in self.model_dump().items() if name != "columns"}
        if self.json_schema is not None:
            settings["json_schema"] = json.dumps(self.json_schema)
        return settings

    def accepts(self, text: str) -> bool:
        """Whether a text, without white space around it, has the form."""
        if self.json_schema is not None:
            return _read_valid(text, json.dumps(self.json_schema)) is not _INVALID
        if self.regex is not None:
            return re.fullmatch(self.regex, text) is not None
        return text in (self.choice or ())


def column_values(text: str | None, types: Mapping[str, ColumnType]) -> dict[str, Any]:
    """The values of the columns of one text, by key.

    Args:
        text: A JSON object; None if there is none, or if it is flagged.
        types: The type of each key.

    Returns:
        None for each key that the object lacks, or whose value is not of the type.
    """
    content = read_json(text) if text is not None else None
    values = content if isinstance(content, dict) else {}
    return {key: _convert(values.get(key), kind) for key, kind in types.items()}


_INVALID = object()


def read_json(text: str) -> Any:
    """The content of a JSON document as the standard defines it, which UTF-8 can hold.

    Returns:
        A value that equals nothing if the text is no such document.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):
        return _INVALID
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _read_valid(text: str, schema: str) -> Any:
    content = read_json(text)
    return content if content is not _INVALID and _validator(schema).is_valid(content) else _INVALID


@functools.lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(json.loads(schema), registry=Registry())  # an empty registry fetches nothing


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError if it is no JSON Schema, or refers to what it does not contain."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.json_path}: {error.message}") from None
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for key, value in _keywords(schema):
        if key == "$ref" and isinstance(value, str):
            try:
                resolver.lookup(value)
            except Unresolvable:
                raise ValueError(f"$ref: {value!r} is not in the schema; define it under $defs") from None


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """All pairs of keys and values, at any depth."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            yield key, value
            yield from _keywords(value)
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for value in schema:
            yield from _keywords(value)


def _column_type(key: str, properties: Mapping[str, Any]) -> ColumnType:
    """The type of the column of a key."""
    if key not in properties:
        raise ValueError(f"`columns`: json_schema has no property {key!r}; it has {', '.join(map(repr, properties))}")
    if not _COLUMN_NAME.fullmatch(key) or len(key) > MAX_COLUMN_NAME or _ENDING.fullmatch(key):
        raise ValueError(
            f"`columns`: {key!r} cannot be in the name of a column: use letters, digits, _ and -, at most "
            f"{MAX_COLUMN_NAME} of them, and no name that ends with sub or flags"
        )
    value = properties[key] if isinstance(properties[key], Mapping) else {}
    kind = value.get("type")
    if isinstance(kind, list) and "null" in kind and len(kind) == 2:  # a value that may be null
        kind = next(name for name in kind if name != "null")
    kind = kind or _type_of_enum(value)
    if kind in _SCALARS:
        return kind
    items = value.get("items")
    if kind == "array" and isinstance(items, Mapping) and items.get("type", _type_of_enum(items)) == "string":
        return "strings"
    raise ValueError(
        f"`columns`: {key!r}: its type in json_schema must be string, number, integer, boolean, or array with items of "
        "type string"
    )


def _type_of_enum(schema: Mapping[str, Any]) -> str | None:
    options = schema.get("enum") or [None]
    return "string" if all(isinstance(option, str) for option in options) else None


def _convert(value: Any, kind: ColumnType) -> Any:
    """A value of JSON as the column has it; None if it is not of the type."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string":
        return value if isinstance(value, str) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if kind == "number":
        return _finite(value) if is_number else None
    if kind == "integer":
        whole = int(value) if is_number and _finite(value) is not None and value == int(value) else None
        return whole if whole is not None and -(2**63) <= whole < 2**63 else None
    is_texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return value if is_texts else None


def _finite(value: float) -> float | None:
    """None for a number that 64 bits do not hold."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) != float("inf") else None
