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

A run has its own copy, `RUN/manifest.yaml`, with most defaults written out. All stages read their settings there, so
that is the place to edit them. The settings that decide which images a run holds cannot change.
"""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.base import ListEntry, Name, Settings
from lotlip_data.manifests.settings.captioners import CaptionerEntry, parse_captioner
from lotlip_data.manifests.settings.dataset import CleanSettings, ShardSettings
from lotlip_data.manifests.settings.download import DownloadSettings
from lotlip_data.manifests.settings.evaluation import SYNTHETIC, EvaluationEntry
from lotlip_data.manifests.settings.plain_values import MAX_DEPTH
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.manifests.settings.source import Source, carries_captions
from lotlip_data.manifests.settings.structured import StructuredOutput
from lotlip_data.manifests.settings.training import TrainingEntry
from lotlip_data.manifests.sources import catalog

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry", bound=ListEntry)

UPDATE_OPTION = "--update-manifest"


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
    """Captioners, each the name of a preset or settings. Empty: all captions are imported; the default if a source
    carries captions."""
    shard: ShardSettings = ShardSettings()
    """The form of the dataset."""
    scores: tuple[ScorerEntry, ...] = ()
    """Scorers of images and texts, each the name of a kind or settings. Their scores are columns of the dataset."""
    clean: CleanSettings = CleanSettings()
    """What is left out of the dataset."""
    train: tuple[TrainingEntry, ...] = (TrainingEntry(method="lotlip"),)
    """Trainings, one model each."""
    evaluate: tuple[EvaluationEntry, ...] = ()
    """Tasks on which every trained model is evaluated, each a name or settings."""
    evaluation_data: str | None = None
    """Folder of the evaluation tasks' files, with one folder per task: a path or fsspec URL."""
    relative_to: str | None = None
    """Folder where the relative paths of this manifest start: a path or fsspec URL. Default: the manifest's folder. In
    `RUN/manifest.yaml`, it is the folder of the manifest that started the run. A model, a tower or a scorer's option
    counts as a path if it starts with `./` or `../`."""

    virtual_fields = ("scale", "files")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = cls._expand_scale(content)
        sources = content.get("sources")
        if "captioners" not in content and isinstance(sources, list | tuple) and any(map(carries_captions, sources)):
            content = content | {"captioners": ()}
        return content

    @staticmethod
    def _expand_scale(content: dict[str, Any]) -> dict[str, Any]:
        if "scale" not in content:
            return content
        if "sources" in content:
            raise ValueError("`scale`: it brings its sources; give `files` by source, or no `scale`")
        others = {name: value for name, value in content.items() if name not in ("scale", "files")}
        preset = str(content["scale"]).lower().removesuffix("-recaptioned")
        others.setdefault("train", [{"method": "lotlip", "preset": preset}])
        return others | {"sources": catalog.sources_of(content["scale"], content.get("files"))}

    @model_validator(mode="after")
    def _check_names(self) -> "Manifest":
        sections: dict[str, list[str]] = {
            "sources": [source.name for source in self.sources],
            "evaluate": [entry.task for entry in self.evaluate],
            "scores": [entry.label for entry in self.scores],
        }
        for section, names in sections.items():
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"`{section}` names {', '.join(repeated)} twice")
        return self

    @model_validator(mode="after")
    def _check_captions(self) -> "Manifest":
        if both := [name for name in self.imported_names if name in self.captioner_names]:
            name = both[0]
            raise ValueError(
                f"`captioners`: {name} has the name of captions that a source carries; give it another `name`, write "
                f"another name in the source's `captions`, or leave one of them out"
            )
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
    def _omit_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `evaluation_data`, `relative_to` and `scores`, earlier releases can read the manifest too."""
        settings: dict[str, Any] = serialize(self)
        optional = ("evaluation_data", "relative_to", "scores")
        return {name: value for name, value in settings.items() if name not in optional or value not in (None, [], ())}

    @property
    def captioner_names(self) -> list[str]:
        """Names of the texts that the captioners make: their folders in a run, and their columns in its dataset."""
        return [name for names in self.captioner_texts.values() for name in names]

    @property
    def imported_names(self) -> list[str]:
        """Names of the captioners whose captions the sources carry, in order."""
        return list(dict.fromkeys(name for source in self.sources for name in source.captions))

    @property
    def captioner_texts(self) -> dict[str, tuple[str, ...]]:
        """By captioner, the names of its texts: its own name alone, unless it makes several texts for each image."""
        return {entry.label: entry.text_names for entry in self.captioners}

    @property
    def structured_outputs(self) -> dict[str, StructuredOutput]:
        """By name of a text, the form that it must have, if it must have one."""
        forms = {name: form for entry in self.captioners for name, form in entry.structured_outputs.items()}
        return {name: form for name, form in forms.items() if form is not None}

    @property
    def several_texts(self) -> dict[str, tuple[str, ...]]:
        """By captioner that makes more than one text for each image, the names of these texts."""
        return {name: texts for name, texts in self.captioner_texts.items() if len(texts) > 1}

    def evaluation_folder(self, entry: EvaluationEntry) -> str:
        """The folder of a published task's files."""
        return entry.data or storage.join(str(self.evaluation_data), entry.name or entry.task)


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


def _describe_syntax_error(error: yaml.YAMLError) -> str:
    """Line, column and problem, and for a tab, which is the usual one, the fix."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    fix = "; indent with spaces, not with tabs" if "'\\t'" in (error.problem or "") else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}{fix}"


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
        raise ManifestError(f"{where}: not YAML: {_describe_syntax_error(error)}") from None
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
    """The manifest with absolute paths. Relative ones start at its `relative_to`, by default at the folder `base`."""
    base = _absolute(manifest.relative_to, base) if manifest.relative_to else base
    sources = [_with_absolute_files(source, base) for source in manifest.sources]
    sets = tuple(_absolute(path, base) for path in manifest.clean.evaluation_sets)
    changes: dict[str, Any] = {
        "relative_to": base,
        "sources": tuple(sources),
        "evaluate": tuple(_with_paths(entry, ("data",), base) for entry in manifest.evaluate),
        "captioners": tuple(_with_paths(entry, ("model",), base, marked=True) for entry in manifest.captioners),
        "scores": tuple(_with_absolute_options(entry, base) for entry in manifest.scores),
        "train": tuple(
            _with_paths(entry, ("start_from", "image_tower", "text_tower"), base, marked=True)
            for entry in manifest.train
        ),
        "clean": manifest.clean.model_copy(update={"evaluation_sets": sets}),
    }
    if manifest.evaluation_data:
        changes["evaluation_data"] = _absolute(manifest.evaluation_data, base)
    return manifest.model_copy(update=changes)


def _with_absolute_files(source: Source, base: str) -> Source:
    changes: dict[str, Any] = {"files": tuple(_absolute(file, base) for file in source.files)}
    if source.table is not None:
        changes["table"] = _absolute(source.table, base)
    return source.model_copy(update=changes)


def _with_absolute_options(entry: ScorerEntry, base: str) -> ScorerEntry:
    """A scorer with absolute paths, also of files that its options name."""
    entry = _with_paths(entry, ("model",), base, marked=True)
    paths = {
        name: _absolute(value.removeprefix("./"), base)
        for name, value in entry.options.items()
        if isinstance(value, str) and value.startswith(("./", "../"))
    }
    return entry.model_copy(update={"options": entry.options | paths}) if paths else entry


def _absolute(path: str, base: str) -> str:
    if "://" in path or pathlib.PurePath(path).is_absolute() or path.startswith("~"):
        return storage.normalise(path)
    return storage.normalise(storage.join(base, path.removeprefix("./")))  # as a second pass leaves it


def _with_paths(entry: Entry, fields: tuple[str, ...], base: str, marked: bool = False) -> Entry:
    """An entry of a list with absolute paths.

    Args:
        entry: The entry.
        fields: Names of its fields that hold paths.
        base: Folder where relative paths start.
        marked: Whether a relative path is one only if it starts with `./` or `../`; other values are names.
    """
    given = {name: value for name, value in entry.explicit.items() if name in fields and isinstance(value, str)}
    paths = {name: value for name, value in given.items() if not marked or value.startswith(("./", "../"))}
    if not paths:
        return entry
    return entry.model_copy(update={name: _absolute(value.removeprefix("./"), base) for name, value in paths.items()})


def dump(manifest: Manifest) -> str:
    """The manifest as YAML, with all defaults but those that a preset decides."""
    return yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def freeze(manifest: Manifest, run: Run, update: bool = False) -> None:
    """Store the manifest in the run's folder, or check that it agrees with the run's.

    The images of a run depend on its lists, their order and the stored size. These settings cannot change once the
    lists are partitioned. The others can, in `RUN/manifest.yaml`.

    Args:
        manifest: The manifest that a user gives.
        run: The run.
        update: Replace the run's manifest if settings differ that can change.

    Raises:
        ManifestError: Naming the settings that differ.
    """
    _check_partitioned(manifest, run, "the manifest given")
    # Checked first, so that a run with nothing to do needs no write access.
    if not storage.exists(run.manifest) and storage.create(run.manifest, dump(manifest).encode()):
        return
    held = held_for(manifest, run, update)
    changes = _differences(held, manifest)
    if changes and not update:
        raise ManifestError(
            f"{run.manifest} has other settings than the manifest given: {_describe(changes)}. To keep the run's "
            f"settings, give {run.manifest} as the manifest. To replace them, give {UPDATE_OPTION}."
        )
    if changes:
        storage.replace(run.manifest, dump(manifest).encode())
        logger.info(f"{run.manifest} now has the settings of the manifest given: {_describe(changes)}")


def held_for(manifest: Manifest, run: Run, update: bool = False) -> Manifest:
    """The manifest in the run's folder, if `manifest` continues the run.

    Args:
        manifest: The manifest that a user gives.
        run: The run.
        update: Allow any difference while the run's lists are not partitioned.

    Raises:
        ManifestError: If the run has no manifest, or naming the settings that differ and cannot change.
    """
    held = frozen(run)
    changes = _differences(_image_settings(held), _image_settings(manifest))
    if not changes or (update and not storage.exists(run.plan)):
        return held
    if storage.exists(run.plan):
        remedy = "Use another run folder, or the manifest that the run was started with."
    else:
        remedy = f"Its lists are not cut into shards yet: give {UPDATE_OPTION} to start it with the manifest given."
    raise ManifestError(f"{run.manifest}: this run was started with another manifest: {_describe(changes)}. {remedy}")


def frozen(run: Run) -> Manifest:
    """The manifest in the run's folder, with absolute paths.

    Raises:
        ManifestError: There is none, it is not valid, or a setting was edited that cannot change.
    """
    try:
        text = storage.read_bytes(run.manifest).decode()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{run.manifest}: not UTF-8 ({error}); save it as UTF-8") from None
    except FileNotFoundError:
        raise ManifestError(
            f"{run.url}: no run here (no manifest.yaml). Start one with `lotlip-data download MANIFEST {run.url}`."
        ) from None
    manifest = parse(text, run.manifest)
    _check_partitioned(manifest, run, "this file")
    # A run of an earlier release does not say where relative paths start: they stay relative to the working folder.
    return with_absolute_paths(manifest, manifest.relative_to) if manifest.relative_to else manifest


def image_settings(manifest: Manifest) -> dict[str, Any]:
    """The settings that decide which images a run holds, for the record in its partition."""
    return _image_settings(manifest).model_dump(mode="json", exclude_unset=True)


def _image_settings(manifest: Manifest) -> Manifest:
    """The settings that decide which images a run holds, under which keys, and how they are stored."""
    fixed = {name: getattr(manifest, name) for name in ("name", "seed", "sample", "samples_per_shard")}
    stored = {name: getattr(manifest.download, name) for name in ("image_size", "quality", "full_decode")}
    others: dict[str, Any] = {"licence": None, "homepage": None, "captions": {}}
    sources = [source.model_copy(update=others) for source in manifest.sources]
    return Manifest.model_validate(fixed | {"sources": sources, "download": stored})


def _check_partitioned(manifest: Manifest, run: Run, where: str) -> None:
    """Raise ManifestError if the run's lists were cut with other settings than those of the manifest, `where`."""
    remedy = f"Remove it; `lotlip-data download MANIFEST {run.url}` rebuilds it from the same lists."
    try:
        recorded = artifacts.read_json(run.plan, remedy, artifacts.JsonObject).get("settings")
    except FileNotFoundError:
        return
    if not recorded:  # of an earlier release
        return
    recorded.setdefault("download", {}).setdefault("full_decode", manifest.download.full_decode)  # of one without it
    if changes := _differences(Manifest.parse(recorded, run.plan), _image_settings(manifest), where):
        raise ManifestError(
            f"{run.manifest}: this run was started with another manifest: {_describe(changes)}. These settings decide "
            "which images a run holds and cannot change: restore them, or use another run folder."
        )


def _differences(held: Manifest, given: Manifest, where: str = "the manifest given") -> list[str]:
    """The settings in which a run's manifest and another one, which `where` names, differ: one text per setting."""
    ours, theirs = (dict(_flatten(manifest.model_dump(mode="json"))) for manifest in (held, given))
    names = dict.fromkeys([*ours, *theirs])
    names.pop("relative_to", None)
    pairs = ((name, _shown(ours, name), _shown(theirs, name)) for name in names)
    return [f"`{name}` is {our} in the run, {their} in {where}" for name, our, their in pairs if our != their]


_SHOWN_CHANGES = 10


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by name, such as `train.0.lr`. A list of plain values counts as one value."""
    if isinstance(value, dict):
        children = list(value.items())
    else:
        is_plain = not isinstance(value, list) or not any(isinstance(entry, dict) for entry in value)
        children = [] if is_plain else list(enumerate(value))
    if not children:
        yield name, value
    for key, child in children:
        yield from _flatten(child, f"{name}.{key}" if name else str(key))


def _shown(settings: dict[str, Any], name: str) -> str:
    """A setting as a message shows it."""
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"


def _describe(changes: list[str]) -> str:
    others = len(changes) - _SHOWN_CHANGES
    return "; ".join(changes[:_SHOWN_CHANGES]) + (f"; and {others} more" if others > 0 else "")
