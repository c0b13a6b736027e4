"""The columns of a source's files, and what they hold where the manifest leaves that to their names (`find`)."""

from collections.abc import Sequence

import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.column_names import FIND, ColumnChoiceError, FoundColumns, find_columns
from lotlip_data.pipeline.url_lists.dialects import header_names
from lotlip_data.pipeline.url_lists.files import check_parquet, errors_name, files_of, open_text
from lotlip_data.pipeline.url_lists.json_rows import check_beginning, object_names
from lotlip_data.pipeline.url_lists.rows import ListError, MissingColumnError, Remark
from lotlip_data.pipeline.url_lists.text_lines import check_encoding, sample_lines


def column_names(source: Source, file: str) -> list[str]:
    """The columns of one of the source's files. Raises ListError if it cannot be read."""
    if source.columns is not None:
        return list(source.columns)
    form = source.format_of(file)
    if form == "txt":
        return ["url"]
    with errors_name(file), storage.open_read(file) as stream:
        if form == "parquet":
            check_parquet(stream, file)
            return list(pq.ParquetFile(stream, pre_buffer=False).schema_arrow.names)
        sample, _ = open_text(stream, file, lambda sentence: None)
    check_encoding(sample, file)
    lines = sample_lines(sample)
    if form == "jsonl":
        check_beginning(lines, file)
        return object_names(lines)
    return header_names(source, form, lines)


def found_columns(source: Source, file: str) -> FoundColumns:
    """What the columns of one of the source's files hold.

    Raises:
        ListError: The file cannot be read.
        MissingColumnError: No column can hold the URLs, or several can hold the same.
    """
    names = column_names(source, file)
    try:
        return find_columns(names, source.url_column, source.text_column, source.captions, file.rsplit("/", 1)[-1])
    except ColumnChoiceError as error:
        setting = error.wanted if error.wanted in ("url", "text") else f"captions: {{{error.wanted}: COLUMN}}"
        raise MissingColumnError(f"{file}: {error}", f". Name the column in `{setting}`", error.wanted) from None


def with_found_columns(source: Source, file: str, remark: Remark = lambda sentence: None) -> Source:
    """The source as it is for one of its files: with the names of the columns of URLs and raw texts.

    Args:
        source: The source.
        file: The file.
        remark: Receives a sentence about what the columns hold, if they are found by their names.
    """
    if not source.finds_columns:
        return source
    found = found_columns(source, file)
    remark(f"{file}: {', '.join(f'{role} in {column!r}' for column, role in found.roles().items())}")
    return source.model_copy(update={"url": found.url, "text": found.text})


def lacks_texts(source: Source) -> bool:
    """Whether the column of the raw texts is to be found by its name, and no file of the source has one."""
    if source.text != FIND or not source.finds_columns:
        return False
    return all(found_columns(source, file).text is None for file in files_of(source))


def check_captions(source: Source) -> None:
    """Check that each captioner whose captions the source carries has a column in one of its files.

    Raises:
        MissingColumnError: One has none.
        ListError: A file cannot be read, or a captioner has the name of another column of the dataset.
    """
    if not source.captions:
        return
    try:
        schema.dataset(source.captions)
    except ValueError as error:
        raise ListError(f"source {source.name}: {error}") from None
    files = files_of(source)
    columns = {file: found_columns(source, file) for file in files}
    for captioner, column in source.captions.items():
        if not any(captioner in found.captions for found in columns.values()):
            raise MissingColumnError(*_missing(source, files, columns[files[0]], captioner, column), captioner)


def _missing(source: Source, files: Sequence[str], found: FoundColumns, captioner: str, column: str) -> tuple[str, str]:
    """What to say about a captioner without a column, and the remedy."""
    names = ", ".join(map(repr, column_names(source, files[0])))
    what = f"no column of the long texts of {captioner}" if column == FIND else f"no column {column!r} ({captioner})"
    where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return (
        f"source {source.name}: {where}: {what}; the columns of {files[0]} are {names}",
        f". Name the column in `captions: {{{captioner}: COLUMN}}` of this source, or name there only captioners that "
        "the list has",
    )
