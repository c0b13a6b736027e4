"""The manifest: a YAML file that names the lists of image URLs and the settings of every stage.

A list of your own needs six lines:

    name: my-images
    sources:
      - name: mine
        files: [my-images.csv]
        url: image_url
        text: alt

A scale of the LoTLIP paper needs the files of its sources' lists (`lotlip-data sources` says where to get them):

    name: my-3m
    scale: 3M
    files:
      cc3m: [Train_GCC-training.tsv]

A run keeps the manifest that it started with, as `RUN/manifest.yaml`.
"""

import pathlib
from typing import Annotated, Any

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lotlip_data.manifests import catalog, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.base import Settings
from lotlip_data.manifests.settings.captioners import CaptionerEntry, parse_captioner
from lotlip_data.manifests.settings.dataset import CleanSettings, ShardSettings
from lotlip_data.manifests.settings.download import DownloadSettings
from lotlip_data.manifests.settings.evaluation import SYNTHETIC, EvaluationEntry
from lotlip_data.manifests.settings.plain_values import MAX_DEPTH
from lotlip_data.manifests.settings.source import Name, Source
from lotlip_data.manifests.settings.training import TrainingEntry


class ManifestError(UserError):
    """A manifest that cannot be used. The message names the file, the setting and the fix."""


class Manifest(Settings):
    """What to download and what to make of it. Only `name` and `sources` have no default.

    `scale` and `files` can stand in place of `sources`: a scale of the paper, and the files of each of its sources.
    """

    name: Name
    """Name of the dataset."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Lists of URLs and raw texts. A URL in several lists is one sample with several raw texts."""
    seed: int = 0
    """Seed of the random order in which rows are distributed over shards."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Number of rows to use, drawn with `seed`. Default: all."""
    samples_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Number of rows per shard."""
    download: DownloadSettings = DownloadSettings()
    """How images are downloaded and stored."""
    captioners: tuple[CaptionerEntry, ...] = tuple(map(parse_captioner, ("instructblip", "llava", "sharegpt4v")))
    """Captioners, each the name of a preset or settings. Empty: all captions are imported."""
    shard: ShardSettings = ShardSettings()
    """The form of the dataset."""
    clean: CleanSettings = CleanSettings()
    """What is left out of the dataset."""
    train: tuple[TrainingEntry, ...] = (TrainingEntry(method="lotlip"),)
    """Trainings, one model each."""
    evaluate: tuple[EvaluationEntry, ...] = ()
    """Tasks on which every trained model is evaluated, each a name or settings."""
    evaluation_data: str | None = None
    """Folder of the evaluation tasks' files, with one folder per task: a path or fsspec URL. A relative path starts at
    the manifest's folder."""

    virtual_fields = ("scale", "files")

    @model_validator(mode="before")
    @classmethod
    def _expand_scale(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "scale" not in content:
            return content
        if "sources" in content:
            raise ValueError("`scale`: it brings its sources; give `files` by source, or no `scale`")
        others = {name: value for name, value in content.items() if name not in ("scale", "files")}
        others.setdefault("train", [{"method": "lotlip", "preset": str(content["scale"]).lower()}])
        return others | {"sources": catalog.sources_of(content["scale"], content.get("files"))}

    @model_validator(mode="after")
    def _check_names(self) -> "Manifest":
        sections: dict[str, list[str]] = {
            "sources": [source.name for source in self.sources],
            "evaluate": [entry.task for entry in self.evaluate],
        }
        for section, names in sections.items():
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"`{section}` names {', '.join(repeated)} twice")
        return self

    @model_validator(mode="after")
    def _check_evaluation_folders(self) -> "Manifest":
        for place, entry in enumerate(self.evaluate):
            if entry.task == SYNTHETIC and entry.data is not None:
                raise ValueError(f"`evaluate.{place}`: the task {SYNTHETIC} is generated, so it has no `data`")
            if entry.task != SYNTHETIC and entry.data is None and self.evaluation_data is None:
                raise ValueError(
                    f"`evaluate.{place}`: the files of {entry.task} are needed; write "
                    f"{{task: {entry.task}, data: FOLDER}}, or set `evaluation_data` to the folder of all tasks"
                )
        return self

    @model_serializer(mode="wrap")
    def _omit_unused_folder(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `evaluation_data`, earlier releases can read the manifest too."""
        settings: dict[str, Any] = serialize(self)
        return {name: value for name, value in settings.items() if name != "evaluation_data" or value is not None}

    def evaluation_folder(self, entry: EvaluationEntry) -> str:
        """The folder of a published task's files."""
        return entry.data or storage.join(str(self.evaluation_data), entry.task)


def load(path: str) -> Manifest:
    """Read the manifest in the YAML file `path`, a path or fsspec URL. Relative paths in it become absolute.

    Raises:
        ManifestError: Naming the file, the setting and the fix.
    """
    try:
        text = storage.read_bytes(storage.normalise(path)).decode("utf-8")
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is no such file") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a YAML file in UTF-8: {error}") from None
    return with_absolute_paths(parse(text, path), storage.normalise(path).rpartition("/")[0])


def parse(text: str, where: str) -> Manifest:
    """Validate the manifest in a YAML text.

    Args:
        text: The YAML.
        where: Name of its file, for error messages.

    Raises:
        ManifestError: Naming the file, the setting and the fix.
    """
    try:
        content = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ManifestError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ManifestError(f"{where}: nested more than {MAX_DEPTH} deep") from None
    except (ValueError, OverflowError) as error:  # a repeated key, an impossible date, or a number of 5,000 digits
        reason = "a number has too many digits" if "set_int_max_str_digits" in str(error) else str(error)
        raise ManifestError(f"{where}: {reason}") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{where}: a manifest is a mapping with at least `name` and `sources`")
    try:
        return Manifest.parse(content, where)
    except UserError as error:
        raise ManifestError(str(error)) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Loads YAML in which no mapping has a key twice, except for merge keys (`<<`)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the keys before anything is merged into them. Raises ManifestError with the key and its lines."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise ManifestError(
                    f"`{key.value}` is given twice, in lines {lines[name]} and {line}; keep one of them"
                )
            lines[name] = line
        return node


def with_absolute_paths(manifest: Manifest, base: str) -> Manifest:
    """The manifest with relative paths resolved against the folder `base`."""

    def absolute(path: str) -> str:
        if "://" in path or pathlib.PurePath(path).is_absolute() or path.startswith("~"):
            return storage.normalise(path)
        return storage.join(base, path)

    sources = [source.model_copy(update={"files": tuple(map(absolute, source.files))}) for source in manifest.sources]
    tasks = [
        entry.model_copy(update={"data": absolute(entry.data)}) if entry.data else entry for entry in manifest.evaluate
    ]
    changes: dict[str, Any] = {"sources": tuple(sources), "evaluate": tuple(tasks)}
    sets = tuple(map(absolute, manifest.clean.evaluation_sets))
    changes["clean"] = manifest.clean.model_copy(update={"evaluation_sets": sets})
    if manifest.evaluation_data:
        changes["evaluation_data"] = absolute(manifest.evaluation_data)
    return manifest.model_copy(update=changes)


def dump(manifest: Manifest) -> str:
    """The manifest as YAML, with all defaults but those that a preset decides."""
    return yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def freeze(manifest: Manifest, run: Run) -> None:
    """Store the manifest in the run's folder, or check that it continues the run.

    The images of a run depend on its lists, their order and the stored size, so these settings cannot change. All
    others can, and the folder then holds the new settings.

    Raises:
        ManifestError: Naming the settings that differ.
    """
    text = dump(manifest).encode()
    if storage.create(run.manifest, text):
        return
    if held_for(manifest, run) != manifest:
        storage.replace(run.manifest, text)


def held_for(manifest: Manifest, run: Run) -> Manifest:
    """The manifest in the run's folder, if `manifest` continues the run.

    Raises:
        ManifestError: If the run has no manifest, or naming the settings that differ and cannot change.
    """
    held = frozen(run)
    ours, theirs = _image_settings(manifest), _image_settings(held)
    if changed := sorted(name for name in ours if ours[name] != theirs[name]):
        raise ManifestError(
            f"{run.manifest}: this run was started with another manifest (they differ in {', '.join(changed)}). "
            "Use another run folder, or the manifest that the run was started with."
        )
    return held


def _image_settings(manifest: Manifest) -> dict[str, Any]:
    """The settings that decide which images a run holds, under which keys, and how they are stored."""
    fixed = {name: getattr(manifest, name) for name in ("name", "seed", "sample", "samples_per_shard")}
    fixed["sources"] = [source.model_dump(exclude={"licence", "homepage"}) for source in manifest.sources]
    stored = {f"download.{name}": getattr(manifest.download, name) for name in ("image_size", "quality")}
    return fixed | stored


def frozen(run: Run) -> Manifest:
    """The manifest in the run's folder. Raises ManifestError if there is none."""
    try:
        text = storage.read_bytes(run.manifest).decode()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{run.manifest}: not UTF-8 ({error}); save it as UTF-8") from None
    except FileNotFoundError:
        raise ManifestError(
            f"{run.url}: no run here (no manifest.yaml). Start one with `lotlip-data download MANIFEST {run.url}`."
        ) from None
    return parse(text, run.manifest)
