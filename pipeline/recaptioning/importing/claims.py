"""The table behind an imported captioner, recorded in its folder, so that captions of two tables never mix.

`captioner.json` of an imported captioner has the field `import` beside the settings: an `ImportRecord`. Folders of
earlier releases lack it.
"""

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.formats.schema import IMPORTED_KIND
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.storage_retry import StorageError
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.importing.caption_table import CaptionTable
from lotlip_data.pipeline.recaptioning.results import RecaptionError

FIELD = "import"


@dataclass(frozen=True)
class ImportRecord:
    """The table that captions were imported from."""

    options: list[str]
    """The arguments of `lotlip-data import` for this captioner, without the run: first the files of the table."""
    stamps: dict[str, str]
    """Path of each file → its stamp when it was imported, such as its size and time of change."""
    sha256: str
    """Digest of the contents of all files."""
    tables: int = 1
    """How many of the options are files; 0 for captions that the manifest's sources carry."""
    columns: dict[str, str] = field(default_factory=dict)
    """For captions that the manifest's sources carry: source → the column, as the manifest names it."""


def check_claim(run: Run, table: CaptionTable, config: CaptionerConfig, replace: bool) -> None:
    """Check that the captioner's folder is free, or holds captions of this table.

    Args:
        run: The run.
        table: The table of captions.
        config: The captioner.
        replace: Whether captions of another table may be replaced.

    Raises:
        RecaptionError: It holds captions of a model, or of another table that may not be replaced.
    """
    folder = run.captioner(config.name)
    try:
        recorded = ledger.captioner_settings(run, config.name)
    except FileNotFoundError:
        return
    if recorded.get("kind") != IMPORTED_KIND and ledger.captioned_shards(run, config.name):
        raise RecaptionError(
            f"{folder}: holds captions that {recorded['id']} made. Give the imported captions another name."
        )
    if replace or _is_of(table, config, recorded):
        return
    if ledger.captioned_shards(run, config.name):
        change = "this table has changed since" if recorded.get("model") == config.model else "not from this table"
        raise RecaptionError(
            f"{folder}: holds captions that were imported from {recorded.get('model')}: {change}. To import this table "
            "in their place, give --replace. To keep both, give these captions another name."
        )


def is_replaced(run: Run, table: CaptionTable) -> bool:
    """Whether captions of the manifest's sources are to be replaced by those that the sources have now.

    Captions that another table has brought stay: `check_claim` refuses to mix them.

    Args:
        run: The run.
        table: The captions that the sources carry.
    """
    names = ledger.captioners(run)
    for config in table.configs:
        if config.name not in names or not ledger.captioned_shards(run, config.name):
            continue
        recorded = ledger.captioner_settings(run, config.name)
        if _is_of_sources(recorded) and not _is_of(table, config, recorded):
            return True
    return False


def _is_of_sources(recorded: dict[str, Any]) -> bool:
    """Whether the recorded captions are those that the manifest's sources carried."""
    return bool(recorded.get(FIELD, {}).get("tables") == 0)


def _is_of(table: CaptionTable, config: CaptionerConfig, recorded: dict[str, Any]) -> bool:
    """Whether the recorded captions of a captioner are those that the table has now."""
    return recorded["id"] == config.id and _is_unchanged(table, recorded.get(FIELD))


def _is_unchanged(table: CaptionTable, recorded: dict[str, Any] | None) -> bool:
    """Whether the table's files have the recorded contents. They are read only if their stamps differ."""
    if recorded is None:  # of an earlier release, in which the id alone identifies the table
        return True
    return recorded["stamps"] == _stamps(table) or recorded["sha256"] == _sha256(table)


def claim(run: Run, table: CaptionTable, replace: bool) -> None:
    """Record the table in the folders of its captioners.

    Args:
        run: The run.
        table: The table of captions, which `check_claim` accepts.
        replace: Remove the captions in these folders first. They go before the record of their table, so a kill leaves
            no caption under the record of another table.
    """
    stamps, sha256 = _stamps(table), _sha256(table)
    for config in table.configs:
        name, path = config.name, run.captioner_settings(config.name)
        if replace:
            for shard in ledger.captioned_shards(run, name):
                storage.remove(run.caption_shard(name, shard))
            ledger.forget_removed(run, name)
        columns = {} if table.tables else _columns_of(table.sources, name)
        record = ImportRecord([*table.tables, *table.options(name)], stamps, sha256, len(table.tables), columns)
        data = _encode(config, record)
        if not storage.create(path, data) and not ledger.captioned_shards(run, name):
            storage.replace(path, data)  # of another table, or of a model, without any captions
            storage.remove(run.parts(name))
            storage.remove(run.model_files(name))


def note_unchanged(run: Run, table: CaptionTable) -> None:
    """Record files of the sources that were written again with the same contents, and other names for a column."""
    stamps = _stamps(table)
    for config in table.configs:
        try:
            recorded = ledger.captioner_settings(run, config.name)
        except FileNotFoundError:
            continue
        if recorded["id"] != config.id or not _is_of_sources(recorded):
            continue
        record = recorded[FIELD] | {"stamps": stamps, "columns": _columns_of(table.sources, config.name)}
        if record != recorded[FIELD]:
            storage.replace(run.captioner_settings(config.name), _encode(config, ImportRecord(**record)))


def outdated_imports(run: Run, sources: Sequence[Source]) -> dict[str, str]:
    """By captioner whose captions the sources carried, why they are to be imported again. Reads no list.

    Lists that are missing or out of reach count as unchanged.

    Args:
        run: The run.
        sources: The sources of its manifest.
    """
    reasons: dict[str, str] = {}
    changed: dict[str, bool] = {}
    for name in dict.fromkeys(name for source in sources for name in source.captions):
        try:
            recorded = ledger.captioner_settings(run, name)
        except FileNotFoundError:
            continue
        if not _is_of_sources(recorded):
            continue
        record = recorded[FIELD]
        for file, stamp in record["stamps"].items():
            if file not in changed:
                changed[file] = _has_changed(file, stamp)
        columns = _columns_of(sources, name)
        if record.get("columns", columns) != columns:
            reasons[name] = "the manifest names other columns since its captions were imported"
        elif files := [file for file in record["stamps"] if changed[file]]:
            reasons[name] = f"{files[0]} has changed since its captions were imported"
    return reasons


def _has_changed(file: str, stamp: str) -> bool:
    try:
        current = storage.stamps_matching(file).values()
    except (OSError, StorageError):
        return False
    return bool(current) and stamp not in current


def _columns_of(sources: Iterable[Source], name: str) -> dict[str, str]:
    return {source.name: source.captions[name] for source in sources if name in source.captions}


def _encode(config: CaptionerConfig, record: ImportRecord) -> bytes:
    return artifacts.encode_json({"id": config.id, **config.to_dict(), FIELD: asdict(record)}, indent=1)


def import_command(run: Run, name: str) -> str:
    """The command that imports the captions of an imported captioner again."""
    record = ledger.captioner_settings(run, name).get(FIELD)
    if record is None:  # of an earlier release
        return "`lotlip-data import` of the same table"
    options, tables = record["options"], record.get("tables", 1)
    return f"`lotlip-data import {shlex.join([*options[:tables], run.url, *options[tables:]])}`"


def _stamps(table: CaptionTable) -> dict[str, str]:
    return {file.path: stamp for file in table.files for stamp in storage.stamps_matching(file.path).values()}


def _sha256(table: CaptionTable) -> str:
    digest = hashlib.sha256()
    for file in _in_order([file.path for file in table.files]):
        with storage.open_read(file) as stream:
            digest.update(f"{storage.size(file)} ".encode())
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _in_order(files: Sequence[str]) -> list[str]:
    return sorted(files, key=lambda file: file.rsplit("/", 1)[-1])
