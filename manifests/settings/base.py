"""Base classes of everything that a user configures.

An unknown setting is an error, and settings do not change after validation. The docstring below a field is the field's
description, in the JSON schema as in the documentation.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import describe_errors
from lotlip_data.manifests.settings.plain_values import check_plain_values

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
"""The name of something that files are named after."""


class Settings(BaseModel):
    """Settings of one section or object."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    virtual_fields: ClassVar[tuple[str, ...]] = ()
    """Keys that a validator of the model replaces by fields. Messages about typos suggest them too."""

    @classmethod
    def parse(cls, settings: Any, where: str = "") -> Self:
        """Validate settings.

        Args:
            settings: A mapping, or an instance of this class.
            where: Start of the error message, such as the name of a file.

        Raises:
            UserError: With every problem in one line: the setting, what is wrong, and the fix.
        """
        check_plain_values(settings, where)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            message = describe_errors(error, cls)
            raise UserError(f"{where}: {message}" if where else message) from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed. Raises UserError for a wrong setting or value."""
        return self.parse(self.explicit | changes)

    @property
    def explicit(self) -> dict[str, Any]:
        """The settings that were set, without those that were left at their default."""
        return self._select(dict(self))

    def _select(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if name in self.model_fields_set}


class SparseSettings(Settings):
    """Settings that are serialised as they were given, without those at their default."""

    @model_serializer(mode="wrap")
    def _serialize_explicit(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._select(serialize(self))


class ListEntry(SparseSettings):
    """An entry of a list in the manifest, such as one captioner.

    A setting that is not given is decided elsewhere, such as by a preset. An entry that gives the default of a setting
    therefore differs from an entry that does not give the setting.
    """

    shorthand: ClassVar[str] = ""
    """The setting that a plain string stands for. Empty: an entry is a mapping."""

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.model_fields_set == getattr(other, "model_fields_set", None)

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, entry: Any) -> Any:
        return {cls.shorthand: entry} if cls.shorthand and isinstance(entry, str) else entry

    @model_serializer(mode="wrap")
    def _serialize_explicit(self, serialize: SerializerFunctionWrapHandler) -> Any:
        settings = self._select(serialize(self))
        return settings[self.shorthand] if set(settings) == {self.shorthand} else settings

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of the mapping, or of the string that stands for it."""
        schema = handler(core_schema)
        if not cls.shorthand:
            return schema
        field = handler.resolve_ref_schema(schema)["properties"][cls.shorthand]
        strings = [
            {key: option[key] for key in ("type", "enum", "const") if key in option}
            for option in field.get("anyOf", [field])
            if option.get("type") == "string"
        ]
        return {"anyOf": [*strings, schema]}
