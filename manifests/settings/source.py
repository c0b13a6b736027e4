"""A source in a manifest: files of URLs and raw texts, how they are read, and which rows are used."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from lotlip_data.manifests.settings.base import Name, Settings
from lotlip_data.manifests.settings.captioners import TextName
from lotlip_data.manifests.sources.catalog import SOURCES, SourceName, published
from lotlip_data.manifests.sources.column_names import FIND, FOUND_CAPTIONERS
from lotlip_data.manifests.sources.row_filter import RowFilter

ListFormat = Literal["csv", "tsv", "jsonl", "parquet", "txt"]
Escape = Literal['"', "\\"]
Decoding = Literal["url", "html", "none"]
HashName = Literal["sha256", "md5"]

_FORMATS: dict[str, ListFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}
_COMPRESSED_ENDINGS = (".gz", ".zst", ".bz2")
_ADDED_SETTINGS = ("delimiter", "escape", "quoting", "decode", "captions")
"""Settings that earlier releases do not know."""


def _as_list(files: Any) -> Any:
    return [files] if isinstance(files, str) else files


def _by_captioner(captions: Any) -> Any:
    return dict.fromkeys(FOUND_CAPTIONERS, FIND) if captions == FIND else {} if captions is None else captions


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
    """Format of the files. Default: by their ending. `txt` is one URL per line, without texts."""
    columns: tuple[str, ...] | None = None
    """Names of the columns, for a CSV or TSV without a header."""
    delimiter: str | None = None
    """Character between the cells of a CSV or TSV. Default: the one of `,`, tab, `;` and `|` that separates the columns
    of the file's first lines."""
    escape: Escape | None = None
    r"""How a cell in quotes contains a quote: `"` doubles it, as RFC 4180 says; `\` puts a backslash before it, as
    Spark does. Default: the one that reads the file's first lines with fewer malformed rows."""
    quoting: bool | None = None
    """Whether cells can stand in quotes. If not, a quote is a part of the text. Default: yes in a CSV; in a TSV, only
    if the file's first lines quote cells as pandas does."""
    url: str = "url"
    """Column of the URLs. `find`: the one whose name says so, in each file; the default with `captions: find`."""
    text: str | None = "caption"
    """Column of the raw texts. Each element of a list is a raw text of the image. null: the list has no texts. `find`:
    as in `url`."""
    captions: Annotated[
        dict[TextName, str],
        BeforeValidator(_by_captioner, json_schema_input_type=Literal["find"] | dict[TextName, str] | None),
    ] = Field(default_factory=dict)
    """Captions that the list carries: captioner → column. They are imported after the download, in place of captioning.
    A column `find` is found by its name; `captions: find` is `{instructblip: find, llava: find, sharegpt4v: find}`.
    Files of one list can have the captions of one captioner each."""
    decode: Decoding = "none"
    """Encoding of the texts that is removed: `url` (`a%20dog` or `a+dog`, as in YFCC100M) or `html` (`Tom &amp;
    Jerry`)."""
    filter: str | None = None
    """Expression over the list's columns (`manifests.sources.row_filter`). Only rows for which it is true are used."""
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
        if not isinstance(content, dict):
            return content
        if content.get("use") is None:
            return _with_found_columns(content)
        source = published(content["use"])
        defaults = {"name": content["use"], "licence": source.licence, "homepage": source.homepage} | source.source
        if _given_format(content) not in (None, defaults.get("format")):  # another edition, for example with a header
            defaults = {name: value for name, value in defaults.items() if name not in ("format", "columns")}
        if content.get("columns") is not None:
            defaults.pop("columns", None)
        return _with_found_columns(defaults | content)

    @field_validator("filter")
    @classmethod
    def _check_filter(cls, value: str | None) -> str | None:
        return value if value is None else RowFilter(value).text

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\\\r\n'):
            raise ValueError(f"{value!r} is not one character other than a quote, a backslash and a line break")
        return value

    @field_validator("hash")
    @classmethod
    def _check_hash(cls, value: dict[str, HashName]) -> dict[str, HashName]:
        if len(set(value.values())) < len(value):
            raise ValueError("names two columns of one kind; give at most one column with sha256 and one with md5")
        return value

    @field_validator("captions")
    @classmethod
    def _check_captions(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := [name for name, column in value.items() if column == FIND and name not in FOUND_CAPTIONERS]:
            raise ValueError(
                f"the column of {unknown[0]!r} cannot be found by its name, only those of "
                f"{', '.join(FOUND_CAPTIONERS)}; name the column"
            )
        return value

    @model_validator(mode="after")
    def _check_format_and_columns(self) -> "Source":
        for file in self.files:
            self.format_of(file)
        written = [name for name in ("delimiter", "escape", "quoting") if getattr(self, name) is not None]
        if written and not any(self.format_of(file) in ("csv", "tsv") for file in self.files):
            raise ValueError(f"`{written[0]}` is a setting of CSV and TSV files only; remove it, or set `format`")
        if self.captions and all(self.format_of(file) == "txt" for file in self.files):
            raise ValueError("`captions` are columns, and a file of the format `txt` has only URLs; set `format`")
        if self.columns is not None:
            named = [*self.needed, *(column for column in self.captions.values() if column != FIND)]
            if missing := [name for name in named if name not in self.columns]:
                raise ValueError(f"`columns` lacks {' and '.join(map(repr, missing))}, which other settings name")
            if repeated := [name for name in named if self.columns.count(name) > 1]:
                raise ValueError(f"`columns` names {' and '.join(map(repr, repeated))} twice; rename one of them")
        return self

    @model_serializer(mode="wrap")
    def _omit_unused_settings(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the added settings, earlier releases can read the manifest too."""
        settings: dict[str, Any] = serialize(self)
        brought = published(self.use).source if self.use else {}
        unused = {name for name in _ADDED_SETTINGS if settings.get(name) in (None, "none", {}) and name not in brought}
        return {name: value for name, value in settings.items() if name not in unused}

    @property
    def needed(self) -> list[str]:
        """The columns of the list that are read, each once: URL, text, and those that `filter` and `hash` name.

        Columns that are found by their names are not among them.
        """
        filtered = [] if self.filter is None else RowFilter(self.filter).columns
        texts = [] if self.text is None else [self.text]
        names = dict.fromkeys([self.url, *texts, *filtered, *self.hash])
        return [name for name in names if name != FIND]

    @property
    def finds_columns(self) -> bool:
        """Whether the column of the URLs, or that of the raw texts, is found by its name."""
        return FIND in (self.url, self.text)

    def format_of(self, file: str) -> ListFormat:
        """The format of one of the source's files. Raises ValueError if its ending is unknown and `format` not set."""
        list_format = self.format or _format_by_ending(file)
        if list_format is None:
            raise ValueError(f"the ending of {file!r} is unknown: set `format` to csv, tsv, jsonl, parquet or txt")
        return list_format


def carries_captions(source: Any) -> bool:
    """Whether a source, or the settings of one, carries captions."""
    if isinstance(source, Source):
        return bool(source.captions)
    if not isinstance(source, dict):
        return False
    use = source.get("use")
    brought = published(use).source.get("captions") if use in SOURCES else None
    return bool(source.get("captions", brought))


def _with_found_columns(content: dict[str, Any]) -> dict[str, Any]:
    """The settings of a source; with `captions: find`, URL and text are found too where they are not given."""
    if content.get("captions") != FIND:
        return content
    return {"url": FIND, "text": FIND} | content


def _format_by_ending(file: str) -> ListFormat | None:
    stem = file.lower()
    if stem.startswith(("http://", "https://")):
        stem = stem.partition("?")[0]
    for ending in _COMPRESSED_ENDINGS:
        stem = stem.removesuffix(ending)
    return _FORMATS.get("." + stem.rsplit(".", 1)[-1])


def _given_format(content: dict[str, Any]) -> str | None:
    """The format according to `format` or the ending of the first file."""
    if content.get("format") is not None:
        return str(content["format"])
    files = content.get("files")
    first = files if isinstance(files, str) else next(iter(files), None) if isinstance(files, list | tuple) else None
    return _format_by_ending(first) if isinstance(first, str) else None
