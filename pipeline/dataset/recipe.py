"""Which captioners' texts a run's dataset has, and with which settings: the recipe, read from the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.structured import ColumnType, StructuredOutput
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.metadata import Recipe


def wanted_captioners(manifest: Manifest, captioners: Sequence[str] = ()) -> list[str]:
    """The captioners whose texts each shard of the dataset needs, whether they have started or not.

    Args:
        manifest: The manifest of the run.
        captioners: Those that are asked for. Default: as in `recipe_of`.
    """
    names = list(captioners or manifest.shard.captioners)
    if not names:
        return [*manifest.captioner_names, *manifest.imported_names]
    return [text for name in names for text in manifest.captioner_texts.get(name, (name,))]


def recipe_of(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> Recipe:
    """The recipe of the run's dataset.

    Args:
        run: The run.
        manifest: Its manifest.
        captioners: The captioners whose texts the dataset has; one that makes several texts for each image stands for
            all of them. Default: those of the manifest's `shard.captioners`, otherwise those that the run has captions
            by and those of the manifest that have started.

    Raises:
        DatasetError: The run has no captions, or none by one of `captioners`.
    """
    names = select_texts(run, manifest, captioners)
    settings = {name: captioner_settings(run, name) for name in names}
    columns = {name: json_columns(settings[name], manifest.structured_outputs.get(name)) for name in names}
    return Recipe(
        {name: str(recorded["id"]) for name, recorded in settings.items()},
        Filters.of(manifest),
        {name: dict(types) for name, types in columns.items() if types},
        json_captioners=tuple(name for name, recorded in settings.items() if recorded.get("structured")),
    )


def select_texts(run: Run, manifest: Manifest, captioners: Sequence[str] = ()) -> list[str]:
    """The texts of an image that a dataset or an export has: names of captioners. The arguments of `recipe_of`.

    Raises DatasetError if the run has no captions by one of `captioners`.
    """
    existing = ledger.captioners(run)
    captioners = [
        text
        for name in captioners or manifest.shard.captioners
        for text in ((name,) if name in existing else manifest.captioner_texts.get(name, (name,)))
    ]
    if unknown := sorted(set(captioners).difference(existing)):
        others = f", or name captioners of the run: {', '.join(existing)}" if existing else ""
        command = "import" if set(unknown) <= set(manifest.imported_names) else "recaption"
        raise DatasetError(
            f"{run.url}: no captions by {', '.join(unknown)} yet. Run `lotlip-data {command} {run.url}`{others}."
        )
    return list(dict.fromkeys(captioners)) or [
        name
        for name in existing
        if name in (*manifest.captioner_names, *manifest.imported_names)
        or ledger.captioned_shards(run, name)  # a failed start leaves a folder
    ]


def json_columns(recorded: Mapping[str, Any], wanted: StructuredOutput | None) -> dict[str, ColumnType]:
    """The keys of a captioner's texts that are columns of the dataset, and their types.

    Args:
        recorded: The settings that made the texts.
        wanted: The manifest's setting now. Its columns count if its form is still that of the texts: they can change
            without new texts.
    """
    if not recorded.get("structured"):
        return {}
    made = StructuredOutput.parse(recorded["structured"])
    return (wanted if wanted is not None and wanted.decisive == made.decisive else made).column_types


def captioner_settings(run: Run, name: str) -> dict[str, Any]:
    """The settings that made a captioner's captions. Raises DatasetError if they are missing."""
    try:
        return ledger.captioner_settings(run, name)
    except FileNotFoundError:
        raise DatasetError(
            f"{run.captioner_settings(name)}: is missing, so it is not known what made the captions beside it. Restore "
            f"it from a copy, or remove them: `lotlip-data captioners remove {run.url} {name}`."
        ) from None
