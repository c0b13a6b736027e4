"""The manifest's `shard` and `clean` sections: what a sample looks like, and what is left out of the dataset."""

import ipaddress
import re
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
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
from lotlip_data.manifests.subcaptions import SplitMode
from lotlip_data.manifests.validation import describe_errors

MAX_DISTANCE = 8
"""The largest Hamming distance of two 64-bit perceptual hashes that can be asked for."""

Distance = Annotated[int, Field(ge=0, le=MAX_DISTANCE)]


class Settings(BaseModel):
    """Base of everything that a user configures: unknown settings are errors, and no setting changes later.

    The docstring below a field is its description in the JSON schema and in the documentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    virtual_fields: ClassVar[tuple[str, ...]] = ()
    """Keys that a validator of the model replaces by fields, so that messages can suggest them too."""

    @classmethod
    def parse(cls, settings: Any, where: str = "") -> Self:
        """Validate a mapping of settings.

        Args:
            settings: The mapping, or an instance of this class.
            where: What the message starts with, such as the name of a file.

        Raises:
            UserError: With every problem in one line: the setting, what is wrong, and the fix.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            message = describe_errors(error, cls)
            raise UserError(f"{where}: {message}" if where else message) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed. Raises UserError for a wrong setting or value."""
        return self.parse(self.given | changes)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given, without those at their default."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class SparseSettings(Settings):
    """Settings that are written down as they were given, without those at their default."""

    @model_serializer(mode="wrap")
    def _serialize_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class ListEntry(SparseSettings):
    """An entry of a manifest's list. A setting that is not given is decided elsewhere, such as by a preset, so an
    entry that gives a default differs from one that gives nothing."""

    shorthand: ClassVar[str] = ""
    """The setting that a plain string stands for; empty: an entry is a mapping."""

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.model_fields_set == getattr(other, "model_fields_set", None)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, entry: Any) -> Any:
        return {cls.shorthand: entry} if cls.shorthand and isinstance(entry, str) else entry

    @model_serializer(mode="wrap")
    def _serialize_given(self, serialize: SerializerFunctionWrapHandler) -> Any:
        settings = {name: value for name, value in serialize(self).items() if name in self.model_fields_set}
        return settings[self.shorthand] if set(settings) == {self.shorthand} else settings

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of the mapping, or of the string that stands for it."""
        schema = handler(core_schema)
        if not cls.shorthand:
            return schema
        plain = handler.resolve_ref_schema(schema)["properties"][cls.shorthand]
        strings = next((option for option in plain.get("anyOf", [plain]) if option.get("type") == "string"), plain)
        return {"anyOf": [{"enum": strings["enum"], "type": "string"}, schema]}


class ShardSettings(Settings):
    """What a sample of the dataset looks like, and how samples are laid out in files."""

    sub_captions: SplitMode = "punkt"
    min_long_texts: Annotated[int, Field(ge=0)] = 1
    """Samples with fewer long texts than this are left out, and counted."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The share of samples that goes to the validation split, by their uid: a sample never changes sides."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples in a tar at most; a shard with more becomes several tars."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """The same in bytes of a tar. A sample that is larger by itself gets a tar of its own."""


class CleanSettings(Settings):
    """What is left out of the dataset: everything is off unless it is asked for, counted and listed with its reason."""

    duplicates: bool = False
    """Leave out images whose fetched bytes an earlier image of the run has (equal sha256)."""
    near_duplicates: Distance | None = None
    """Leave out images whose perceptual hash is within this Hamming distance of an earlier image's; 4 is usual."""
    evaluation_sets: tuple[str, ...] = ()
    """Images that must not be in the dataset: folders, tars, images, or `.txt` lists of images; paths or URLs."""
    evaluation_distance: Distance = 4
    """Leave out images whose perceptual hash is within this distance of an evaluation image's, or that equal one."""
    min_side: Annotated[int, Field(ge=1)] | None = None
    """Of the shorter side of the fetched image, in pixels."""
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    """Of the longer side to the shorter one."""
    min_words: Annotated[int, Field(ge=1)] | None = None
    """Of a raw text. A sample that several sources list keeps the raw texts that pass, and is left out without any."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    language: Literal["english"] | None = None
    """Of a raw text: ASCII letters nearly all, and in longer texts some English function words."""
    drop_flags: tuple[str, ...] = ()
    """Leave out long texts with any of these flags of the captioners, such as `repetition`."""

    @model_validator(mode="after")
    def _words_in_order(self) -> "CleanSettings":
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"`min_words` is {self.min_words}, above `max_words`, {self.max_words}: no text can pass")
        return self

    @property
    def looks_at_pixels(self) -> bool:
        """Whether perceptual hashes are needed."""
        return self.near_duplicates is not None or bool(self.evaluation_sets)

    @property
    def compares_images(self) -> bool:
        """Whether an image can be left out because of another one."""
        return self.duplicates or self.looks_at_pixels


def _host_alone(given: str) -> str:
    """A host as a URL's host is compared with it. Raises ValueError with what to write in place of anything else."""
    bare = given.strip().strip("[]")
    try:
        host: str | None = str(ipaddress.ip_address(bare))  # an IPv6 address has colons of its own
    except ValueError:
        host = _host_within(given.strip())
    if host is None:
        raise ValueError(f"{given!r} is no host; write the name or the address of each one, such as 'images.intra'")
    if host.lower() != given.lower():
        raise ValueError(f"{given!r} is more than a host, or another spelling of one; write {host!r}")
    return given


def _host_within(text: str) -> str | None:
    """The host of a URL, or of one that lacks its scheme, in ASCII as it is asked for; None where there is no one."""
    if re.fullmatch(r"[\da-fA-F.:]+/\d+", text):
        return None  # a network
    try:
        host = (urlsplit(text if "://" in text else f"//{text}").hostname or "").rstrip(".").encode("idna").decode()
    except ValueError:
        return None
    return host if re.fullmatch(r"[\w.:%-]+", host) else None


class DownloadSettings(Settings):
    """How images are fetched and stored."""

    image_size: Annotated[int, Field(ge=16)] = 512
    """The shorter side at most, in pixels; the aspect is kept and nothing is enlarged."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    threads: Annotated[int, Field(ge=1)] = 64
    """Fetches under way in one shard."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that one socket operation may take."""
    total_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that one fetch may take, redirects and body included."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Further attempts at what may pass, after a pause that grows, or the one that the server asks for."""
    per_host: Annotated[int, Field(ge=1)] = 8
    """Fetches under way from one host in one shard."""
    host_failures: Annotated[int, Field(ge=1)] = 16
    """So many failures of one host in a row, and the rest of its images in a shard is not tried any more."""
    shard_tries: Annotated[int, Field(ge=1)] = 3
    """In so many downloads a shard of which nothing comes is tried before it is done without an image."""
    max_bytes: Annotated[int, Field(ge=1)] = 50_000_000
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    allow_hosts: tuple[Annotated[str, AfterValidator(_host_alone)], ...] = ()
    """Hosts, on any port, that may be fetched from although their address is private or loopback: tests, intranets."""
    user_agent: str | None = "lotlip-data"
    respect_robots_tag: bool = True
