"""A source in a manifest: lists of URLs or images that exist, with raw texts; how they are read, which rows are used.

A source of images that exist is a source of WebDataset tars, of tables with image bytes, or of a folder of images.
"""

from typing import Annotated, Any, Literal, get_args

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
ImageFormat = Literal["webdataset", "image-table", "image-folder"]
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
Escape = Literal['"', "\\"]
Decoding = Literal["url", "html", "none"]
HashName = Literal["sha256", "md5"]
Storing = Literal["reference", "copy"]

_FORMATS: dict[str, ListFormat | ImageFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".arrow": "image-table",
}
_COMPRESSED_ENDINGS = (".gz", ".zst", ".bz2")
_DEFAULT_FILE_NAME = "file_name"
_IMAGE_SETTINGS: dict[str, Any] = {
    "image": None,
    "images": "reference",
    "key": None,
    "table": None,
    "file_name": _DEFAULT_FILE_NAME,
    "follow_links": False,
}
"""Settings of images that exist, with their defaults."""
_ADDED_SETTINGS: dict[str, Any] = {
    "delimiter": None,
    "escape": None,
    "quoting": None,
    "decode": "none",
    "captions": {},
    **_IMAGE_SETTINGS,
}
"""Settings that earlier releases do not know, with their defaults."""


def _as_list(files: Any) -> Any:
    return [files] if isinstance(files, str) else files


def _by_captioner(captions: Any) -> Any:
    return dict.fromkeys(FOUND_CAPTIONERS, FIND) if captions == FIND else {} if captions is None else captions


class Source(Settings):
    """A list of URLs and raw texts, or images that exist. With `use`, the published source decides what is not
    given."""

    use: SourceName | None = None
    """A published source whose settings are the defaults: see `lotlip-data sources`."""
    name: Name
    """Name of the source. With `use`, the default is the published source's name."""
    files: Annotated[
        tuple[str, ...], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])
    ]
    """Files of the list, tars, tables or folders: paths or fsspec URLs, with `*` or braces (`{00000..00099}`, `{a,b}`)
    for many. A relative path starts at the manifest's folder."""
    format: ListFormat | ImageFormat | None = None
    """Format of the files. Default: by their ending. `txt` is one URL per line, without texts. Images that exist:
    `webdataset` (tars), `image-table` (Parquet or Arrow files with image bytes, or folders of `datasets`) and
    `image-folder`."""
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
    url: str | None = "url"
    """Column of the URLs. `find`: the one whose name says so, in each file; the default with `captions: find`. Images
    that exist need none: the default is then null, and a column or a key of the JSON
    members (`json.url`) can be named, whose URL identifies the image in place of its content."""
    text: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = "caption"
    """Column of the raw texts. Each element of a list is a raw text of the image. null: there are no texts. Of images
    that exist, several columns can be named. In tars, and in folders without a `table`, a column is the extension of a
    text file (`txt`, the default) or a key of a JSON file (`json.caption`). `find` in a list of URLs: as in `url`."""
    captions: Annotated[
        dict[TextName, str],
        BeforeValidator(_by_captioner, json_schema_input_type=Literal["find"] | dict[TextName, str] | None),
    ] = Field(default_factory=dict)
    """Captions that a list of URLs carries: captioner → column. They are imported after the download, in place of
    captioning. A column `find` is found by its name; `captions: find` is `{instructblip: find, llava: find, sharegpt4v:
    find}`. Files of one list can have the captions of one captioner each."""
    image: (
        Annotated[
            tuple[str, ...],
            Field(min_length=1),
            BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...]),
        ]
        | None
    ) = None
    """Images that exist: the column of a table (default: `image`), or the extensions of image files, such as `jpg`
    (default: those of all formats that can be read)."""
    images: Storing = "reference"
    """Images that exist: whether a run refers to them where they lie (`reference`), or stores them as it stores
    downloaded images (`copy`)."""
    key: str | None = None
    """Column of an `image-table` that names its rows. Default: they are named by their number in the file."""
    table: str | None = None
    """Table of an `image-folder` with the texts of its images, in a format of lists: a path or fsspec URL. Default:
    texts are in files beside the images."""
    file_name: str = _DEFAULT_FILE_NAME
    """Column of `table` with the path of each image in the folder."""
    follow_links: bool = False
    """Whether symbolic links that lead out of an `image-folder` are followed."""
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
            own = ("format", "columns", *(("url", "text", "captions", "filter") if _is_of_images(content) else ()))
            defaults = {name: value for name, value in defaults.items() if name not in own}
        if content.get("columns") is not None:
            defaults.pop("columns", None)
        return _with_found_columns(defaults | content)

    @model_validator(mode="before")
    @classmethod
    def _add_defaults_of_images(cls, content: Any) -> Any:
        if not _is_of_images(content):
            return content
        text = "caption" if _given_format(content) == "image-table" or content.get("table") is not None else "txt"
        return {"url": None, "text": text} | content

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
        formats: set[str] = {self.format_of(file) for file in self.files}
        if self.is_images:
            if len(formats) > 1:
                several = " and ".join(sorted(formats))
                raise ValueError(f"`files` has files of the formats {several}; make a source of each")
            self._check_images()
        else:
            self._check_list()
        written = [name for name in ("delimiter", "escape", "quoting") if getattr(self, name) is not None]
        if self.table is not None:
            formats = {_table_format(self.table)}
        if written and formats.isdisjoint(("csv", "tsv")):
            raise ValueError(f"`{written[0]}` is a setting of CSV and TSV files only; remove it, or set `format`")
        if self.columns is not None:
            wanted = [*self.needed, *(column for column in self.captions.values() if column != FIND)]
            if missing := [name for name in wanted if name not in self.columns]:
                raise ValueError(f"`columns` lacks {' and '.join(map(repr, missing))}, which other settings name")
            if repeated := [name for name in wanted if self.columns.count(name) > 1]:
                raise ValueError(f"`columns` names {' and '.join(map(repr, repeated))} twice; rename one of them")
        return self

    def _check_list(self) -> None:
        """Raise ValueError for a setting that a list of URLs cannot have."""
        if self.url is None:
            raise ValueError("`url`: a list of URLs needs the column of the URLs. For images that exist, set `format`")
        if isinstance(self.text, tuple):
            raise ValueError("`text`: a list of URLs has one column of texts; it can hold lists of texts")
        if self.captions and all(self.format_of(file) == "txt" for file in self.files):
            raise ValueError("`captions` are columns, and a file of the format `txt` has only URLs; set `format`")
        if foreign := [name for name, default in _IMAGE_SETTINGS.items() if getattr(self, name) != default]:
            raise ValueError(
                f"`{foreign[0]}` is a setting of images that exist; remove it, or set `format` to "
                f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"
            )

    def _check_images(self) -> None:
        """Raise ValueError for a setting that images of this format cannot have."""
        form = self.format_of(self.files[0])
        for name in ("hash", "captions"):
            if getattr(self, name):
                raise ValueError(f"`{name}` is a setting of lists of URLs only; remove it")
        if form == "image-table" and len(self.image or ()) > 1:
            raise ValueError("`image`: one column of images is read of a table; make a source of each")
        if self.key is not None and form != "image-table":
            raise ValueError("`key` is a setting of the format image-table only; remove it")
        if form != "image-folder":
            for name in ("table", "file_name", "follow_links"):
                if getattr(self, name) != _IMAGE_SETTINGS[name]:
                    raise ValueError(f"`{name}` is a setting of the format image-folder only; remove it")
        if self.columns is not None and self.table is None:
            raise ValueError("`columns` is a setting of lists of URLs and of `table` only; remove it")

    @model_serializer(mode="wrap")
    def _omit_unused_settings(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the added settings, earlier releases can read the manifest too."""
        settings: dict[str, Any] = serialize(self)
        brought = published(self.use).source if self.use else {}
        unused = {
            name for name, default in _ADDED_SETTINGS.items() if settings.get(name) == default and name not in brought
        }
        return {name: value for name, value in settings.items() if name not in unused}

    @property
    def is_images(self) -> bool:
        """Whether the source's images exist, so that nothing is downloaded."""
        return self.format_of(self.files[0]) in IMAGE_FORMATS

    @property
    def url_column(self) -> str:
        """The column of the URLs of a list."""
        assert self.url is not None  # as `_check_list` has made sure
        return self.url

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the raw texts."""
        return (self.text,) if isinstance(self.text, str) else self.text or ()

    @property
    def text_column(self) -> str | None:
        """The column of the raw texts of a list; None if it has no texts."""
        return next(iter(self.text_columns), None)

    @property
    def needed(self) -> list[str]:
        """The columns that are read, each once: URL, texts, and those that `filter` and `hash` name.

        Columns of a list that are found by their names are not among them.
        """
        filtered = [] if self.filter is None else RowFilter(self.filter).columns
        names = [self.file_name] if self.table is not None else []
        names += [name for name in (self.url, self.key) if name is not None]
        names = list(dict.fromkeys([*names, *self.text_columns, *filtered, *self.hash]))
        return [name for name in names if name != FIND or self.is_images]

    @property
    def finds_columns(self) -> bool:
        """Whether the column of the URLs of a list, or that of the raw texts, is found by its name."""
        return FIND in (self.url, self.text) and not self.is_images

    @property
    def table_list(self) -> "Source":
        """The table of a folder as a list: in place of URLs, it has the paths of the images."""
        assert self.table is not None
        settings = {name: getattr(self, name) for name in ("name", "columns", "delimiter", "escape", "quoting")}
        return Source(files=(self.table,), url=self.file_name, text=None, **settings)

    def format_of(self, file: str) -> ListFormat | ImageFormat:
        """The format of one of the source's files. Raises ValueError if its ending is unknown and `format` not set."""
        known = self.format or _format_by_ending(file)
        if known is None:
            raise ValueError(
                f"the ending of {file!r} is unknown: set `format` to csv, tsv, jsonl, parquet or txt for a list of "
                "URLs, or to webdataset, image-table or image-folder for images"
            )
        return known


def carries_captions(source: Any) -> bool:
    """Whether a source, or the settings of one, carries captions."""
    if isinstance(source, Source):
        return bool(source.captions)
    if not isinstance(source, dict):
        return False
    use = source.get("use")
    brought = published(use).source.get("captions") if use in SOURCES and not _is_of_images(source) else None
    return bool(source.get("captions", brought))


def _with_found_columns(content: dict[str, Any]) -> dict[str, Any]:
    """The settings of a source; with `captions: find`, URL and text are found too where they are not given."""
    if content.get("captions") != FIND:
        return content
    return {"url": FIND, "text": FIND} | content


def _table_format(table: str) -> ListFormat:
    """The format of the table of a folder."""
    form = _format_by_ending(table)
    if form not in ("csv", "tsv", "jsonl", "parquet"):
        raise ValueError(f"`table`: the ending of {table!r} is not .csv, .tsv, .jsonl or .parquet; rename it")
    return form


def _format_by_ending(file: str) -> ListFormat | ImageFormat | None:
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


def _is_of_images(content: Any) -> bool:
    return isinstance(content, dict) and _given_format(content) in IMAGE_FORMATS
