"""The manifest: a YAML file that names the lists of image URLs and the settings of every stage.

A user's own list needs six lines:

    name: my-images
    sources:
      - name: mine
        files: [my-images.csv]
        url: image_url
        text: alt

and the paper's scales the lists of their sources (`lotlip-data sources` says where these can be had):

    name: my-3m
    scale: 3M
    files:
      cc3m: [Train_GCC-training.tsv]
"""

import pathlib
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from lotlip_data.manifests import catalog, storage
from lotlip_data.manifests.captioner_settings import CaptionerEntry, parse_captioner
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.evaluation_settings import SYNTHETIC, EvaluationEntry
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings import CleanSettings, DownloadSettings, Settings, ShardSettings
from lotlip_data.manifests.source import Name, Source
from lotlip_data.manifests.training_settings import TrainingEntry


class ManifestError(UserError):
    """A manifest that cannot be used; the message names the file, the field and the fix."""


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a mapping has no key twice, but for merge keys (`<<`)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys before anything is merged into them. Raises ManifestError naming the key and its lines."""
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


class Manifest(Settings):
    """What to fetch and what to make of it. Everything has a default but `name` and `sources`.

    In place of `sources` there may be a `scale` of the paper, and `files` by source.
    """

    name: Name
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    seed: int = 0
    """Of the random order in which rows are cut into shards."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Take only this many rows, drawn by the seed."""
    samples_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    download: DownloadSettings = DownloadSettings()
    captioners: tuple[CaptionerEntry, ...] = tuple(map(parse_captioner, ("instructblip", "llava", "sharegpt4v")))
    """Captioners, each a preset's name or settings."""
    shard: ShardSettings = ShardSettings()
    clean: CleanSettings = CleanSettings()
    train: tuple[TrainingEntry, ...] = (TrainingEntry(method="lotlip"),)
    """Trainings, one model each."""
    evaluate: tuple[EvaluationEntry, ...] = ()
    """Tasks on which every trained model is evaluated, each a name or a name with its folder."""
    evaluation_data: str | None = None
    """Folder of the evaluation tasks' files, with one folder per task: a path or fsspec URL; a relative path starts at
    the manifest's folder."""

    virtual_fields = ("scale", "files")

    @model_validator(mode="before")
    @classmethod
    def _of_a_scale(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "scale" not in content:
            return content
        if "sources" in content:
            raise ValueError("`scale`: it brings its sources; give `files` by source, or no `scale`")
        others = {name: value for name, value in content.items() if name not in ("scale", "files")}
        others.setdefault("train", [{"method": "lotlip", "preset": str(content["scale"]).lower()}])
        return others | {"sources": catalog.sources_of(content["scale"], content.get("files"))}

    @model_validator(mode="after")
    def _names_differ(self) -> "Manifest":
        names = [source.name for source in self.sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"`sources` names {', '.join(sorted(twice))} twice")
        return self

    @model_validator(mode="after")
    def _tasks_have_folders(self) -> "Manifest":
        names = [entry.task for entry in self.evaluate]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"`evaluate` names {', '.join(sorted(twice))} twice")
        for place, entry in enumerate(self.evaluate):
            if entry.task == SYNTHETIC and entry.data is not None:
                raise ValueError(f"`evaluate.{place}`: the task {SYNTHETIC} is generated, so it has no `data`")
            if entry.task != SYNTHETIC and entry.data is None and self.evaluation_data is None:
                raise ValueError(
                    f"`evaluate.{place}`: the files of {entry.task} are needed; write "
                    f"{{task: {entry.task}, data: FOLDER}}, or set `evaluation_data` to the folder of all tasks"
                )
        return self

    def evaluation_folder(self, entry: EvaluationEntry) -> str:
        """The folder of a published task's files."""
        return entry.data or storage.join(str(self.evaluation_data), entry.task)


def load(path: str) -> Manifest:
    """The manifest in the YAML file `path` (a path or fsspec URL), its relative files made absolute.

    Raises ManifestError with the file, the field and the fix.
    """
    try:
        text = storage.read_bytes(storage.normalise(path)).decode("utf-8")
    except FileNotFoundError:
        raise ManifestError(f"{path}: there is no such file") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a YAML file in UTF-8: {error}") from None
    manifest = parse(text, path)
    base = storage.normalise(path).rpartition("/")[0]
    sources = [
        source.model_copy(update={"files": tuple(_absolute(file, base) for file in source.files)})
        for source in manifest.sources
    ]
    sets = tuple(_absolute(path, base) for path in manifest.clean.evaluation_sets)
    tasks = [
        entry.model_copy(update={"data": _absolute(entry.data, base)}) if entry.data else entry
        for entry in manifest.evaluate
    ]
    data = manifest.evaluation_data
    return manifest.model_copy(
        update={
            "sources": tuple(sources),
            "clean": manifest.clean.model_copy(update={"evaluation_sets": sets}),
            "evaluate": tuple(tasks),
            "evaluation_data": _absolute(data, base) if data else data,
        }
    )


def parse(text: str, where: str) -> Manifest:
    """The manifest in the YAML `text`; `where` is named in errors. Raises ManifestError."""
    try:
        content = yaml.load(text, _EachKeyOnce)
    except yaml.YAMLError as error:
        raise ManifestError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a key twice, or a date that there is not
        raise ManifestError(f"{where}: {error}") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{where}: a manifest is a mapping with at least `name` and `sources`")
    try:
        return Manifest.parse(content, where)
    except UserError as error:
        raise ManifestError(str(error)) from None


def _absolute(file: str, base: str) -> str:
    if "://" in file or pathlib.PurePath(file).is_absolute() or file.startswith("~"):
        return storage.normalise(file)
    return storage.join(base, file)


def dump(manifest: Manifest) -> str:
    """The manifest as YAML, every setting spelled out."""
    return yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def freeze(manifest: Manifest, run: Run) -> None:
    """Put the manifest into the run's folder, or check that it goes on with what the folder holds.

    What was fetched belongs to its lists, their order and the stored size: those cannot change in a run. Everything
    else may, and the folder then holds the new settings. Raises ManifestError naming what differs.
    """
    text = dump(manifest).encode()
    if storage.create(run.manifest, text):
        return
    if held_for(manifest, run) != manifest:
        storage.replace(run.manifest, text)


def held_for(manifest: Manifest, run: Run) -> Manifest:
    """The manifest that the run was started with, if `manifest` goes on with it.

    Raises ManifestError where the run has none, or naming what differs of what may not.
    """
    held = frozen(run)
    ours, theirs = _of_the_images(manifest), _of_the_images(held)
    if changed := sorted(name for name in ours if ours[name] != theirs[name]):
        raise ManifestError(
            f"{run.manifest}: this run was started with another manifest (they differ in {', '.join(changed)}). "
            "Use another run folder, or the manifest that the run was started with."
        )
    return held


def _of_the_images(manifest: Manifest) -> dict[str, Any]:
    """The settings that decide which images a run holds, under which keys, and how they are stored."""
    fixed = {name: getattr(manifest, name) for name in ("name", "seed", "sample", "samples_per_shard")}
    fixed["sources"] = [source.model_dump(exclude={"licence", "homepage"}) for source in manifest.sources]
    stored = {f"download.{name}": getattr(manifest.download, name) for name in ("image_size", "quality")}
    return fixed | stored


def frozen(run: Run) -> Manifest:
    """The manifest that the run was started with. Raises ManifestError where the run has none."""
    try:
        text = storage.read_bytes(run.manifest).decode()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{run.manifest}: not UTF-8 ({error}); save it as UTF-8") from None
    except FileNotFoundError:
        raise ManifestError(
            f"{run.url}: no run here (no manifest.yaml). Start one with `lotlip-data download MANIFEST {run.url}`."
        ) from None
    return parse(text, run.manifest)
