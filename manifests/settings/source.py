"""A source in a manifest: files of URLs and raw texts, how they are read, and which rows are used."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lotlip_data.manifests.catalog import SourceName, published
from lotlip_data.manifests.row_filter import RowFilter
from lotlip_data.manifests.settings.base import Name, Settings

ListFormat = Literal["csv", "tsv", "jsonl", "parquet"]
HashName = Literal["sha256", "md5"]

_FORMATS: dict[str, ListFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}


def _as_list(files: Any) -> Any:
    return [files] if isinstance(files, str) else files


class Source(Settings):
    """A list of URLs and raw texts. With `use`, the published source decides what is not given."""

    use: SourceName | None = None
    """A published source whose settings are the defaults: see `lotlip-data sources`."""
    name: Name
    """Name of the source. With `use`, the default is the published source's name."""
    files: Annotated[
        tuple[str, ...], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])
    ]
    """Files of the list: paths or fsspec URLs, with `*` for many. A relative path starts at the manifest's folder."""
    format: ListFormat | None = None
    """Format of the files. Default: by their ending."""
    columns: tuple[str, ...] | None = None
    """Names of the columns, for a CSV or TSV without a header."""
    url: str = "url"
    """Column of the URLs."""
    text: str = "caption"
    """Column of the raw texts."""
    filter: str | None = None
    """Expression over the list's columns (`manifests.row_filter`). Only rows for which it is true are used."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Number of images of this source to use, drawn with its `seed`. Default: all."""
    seed: int = 0
    """Seed of the source's sample. It does not change the order of the sample."""
    hash: dict[str, HashName] = Field(default_factory=dict)
    """Columns with the expected hash of the downloaded bytes: column → `sha256` or `md5`."""
    licence: str | None = None
    """Licence of the list and its images, for the dataset's card and metadata."""
    homepage: str | None = None
    """Web page of the source, for the dataset's card and metadata."""

    @model_validator(mode="before")
    @classmethod
    def _add_published_settings(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("use") is None:
            return content
        source = published(content["use"])
        defaults = {"name": content["use"], "licence": source.licence, "homepage": source.homepage} | source.source
        if _given_format(content) not in (None, defaults.get("format")):  # another edition, for example with a header
            defaults = {name: value for name, value in defaults.items() if name not in ("format", "columns")}
        if content.get("columns") is not None:
            defaults.pop("columns", None)
        return defaults | content

    @field_validator("filter")
    @classmethod
    def _check_filter(cls, value: str | None) -> str | None:
        return value if value is None else RowFilter(value).text

    @field_validator("hash")
    @classmethod
    def _check_hash(cls, value: dict[str, HashName]) -> dict[str, HashName]:
        if len(set(value.values())) < len(value):
            raise ValueError("names two columns of one kind; give at most one column with sha256 and one with md5")
        return value

    @model_validator(mode="after")
    def _check_format_and_columns(self) -> "Source":
        for file in self.files:
            self.format_of(file)
        if self.columns is not None and (missing := [name for name in self.needed if name not in self.columns]):
            raise ValueError(f"`columns` lacks {' and '.join(map(repr, missing))}, which other settings name")
        return self

    @property
    def needed(self) -> list[str]:
        """The columns of the list that are read, each once: URL, text, and those that `filter` and `hash` name."""
        filtered = [] if self.filter is None else RowFilter(self.filter).columns
        return list(dict.fromkeys([self.url, self.text, *filtered, *self.hash]))

    def format_of(self, file: str) -> ListFormat:
        """The format of one of the source's files. Raises ValueError if its ending is unknown and `format` not set."""
        list_format = self.format or _format_by_ending(file)
        if list_format is None:
            raise ValueError(f"the ending of {file!r} is unknown: set `format` to csv, tsv, jsonl or parquet")
        return list_format


def _format_by_ending(file: str) -> ListFormat | None:
    stem = file.lower().removesuffix(".gz").removesuffix(".zst")
    return _FORMATS.get("." + stem.rsplit(".", 1)[-1])


def _given_format(content: dict[str, Any]) -> str | None:
    """The format according to `format` or the ending of the first file."""
    if content.get("format") is not None:
        return str(content["format"])
    files = content.get("files")
    first = files if isinstance(files, str) else next(iter(files), None) if isinstance(files, list | tuple) else None
    return _format_by_ending(first) if isinstance(first, str) else None
