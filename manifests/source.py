"""A source as a manifest names it: files of URLs and raw texts, how they are read, and which rows are taken."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lotlip_data.manifests.catalog import published
from lotlip_data.manifests.row_filter import RowFilter
from lotlip_data.manifests.settings import Settings

ListFormat = Literal["csv", "tsv", "jsonl", "parquet"]
HashName = Literal["sha256", "md5"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]

_FORMATS: dict[str, ListFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}


def _one_or_many(files: Any) -> Any:
    return [files] if isinstance(files, str) else files


class Source(Settings):
    """A list of URLs and raw texts. With `use`, what is not given is that published source's."""

    use: str | None = None
    """A published source that the project knows: see `manifests.catalogue`."""
    name: Name
    files: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        BeforeValidator(_one_or_many, json_schema_input_type=str | tuple[str, ...]),
    ]
    """Paths or fsspec URLs, `*` allowed; relative ones start at the manifest's folder."""
    format: ListFormat | None = None
    """By the files' ending where it is not given."""
    columns: tuple[str, ...] | None = None
    """The columns' names, for a CSV or TSV without a header."""
    url: str = "url"
    text: str = "caption"
    filter: str | None = None
    """An expression over the list's columns; only rows of which it is true are taken (`manifests.row_filter`)."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Take only this many images of the source, drawn by `seed`."""
    seed: int = 0
    """Of the source's sample. It does not change the order of what is drawn."""
    hash: dict[str, HashName] = Field(default_factory=dict)
    """Columns with the hash that the fetched bytes should have: column to `sha256` or `md5`."""
    licence: str | None = None
    """Under which its list and images may be used; for the dataset's card and metadata, like the homepage."""
    homepage: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("use") is None:
            return given
        source = published(given["use"])
        known = {"name": given["use"], "licence": source.licence, "homepage": source.homepage} | source.source
        if _told_format(given) not in (None, known.get("format")):  # another edition of the list: with a header, say
            known = {name: value for name, value in known.items() if name not in ("format", "columns")}
        if given.get("columns") is not None:
            known.pop("columns", None)
        return known | given

    @field_validator("filter")
    @classmethod
    def _an_expression(cls, value: str | None) -> str | None:
        return value if value is None else RowFilter(value).text

    @field_validator("hash")
    @classmethod
    def _each_hash_once(cls, value: dict[str, HashName]) -> dict[str, HashName]:
        if len(set(value.values())) < len(value):
            raise ValueError("names two columns of one kind; give one column with sha256 and one with md5 at most")
        return value

    @model_validator(mode="after")
    def _known_format(self) -> "Source":
        for file in self.files:
            self.format_of(file)
        if self.columns is not None and (missing := [name for name in self.needed if name not in self.columns]):
            raise ValueError(f"`columns` lacks {' and '.join(map(repr, missing))}, which other settings name")
        return self

    @property
    def needed(self) -> list[str]:
        """The list's columns that are read, each once: URL, text, and what `filter` and `hash` name."""
        named = [] if self.filter is None else RowFilter(self.filter).columns
        return list(dict.fromkeys([self.url, self.text, *named, *self.hash]))

    def format_of(self, file: str) -> ListFormat:
        """The format of one of the source's files. Raises ValueError where its ending does not tell."""
        found = self.format or _by_ending(file)
        if found is None:
            raise ValueError(f"the ending of {file!r} does not tell it: set `format` to csv, tsv, jsonl or parquet")
        return found


def _by_ending(file: str) -> ListFormat | None:
    stem = file.lower().removesuffix(".gz").removesuffix(".zst")
    return _FORMATS.get("." + stem.rsplit(".", 1)[-1])


def _told_format(given: dict[str, Any]) -> str | None:
    """What `format`, or the ending of the first file, says."""
    if given.get("format") is not None:
        return str(given["format"])
    files = given.get("files")
    first = files if isinstance(files, str) else next(iter(files), None) if isinstance(files, list | tuple) else None
    return _by_ending(first) if isinstance(first, str) else None
