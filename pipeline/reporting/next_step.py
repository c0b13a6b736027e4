"""What of a run no longer fits its input, and the next command to run."""

import contextlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import score_file
from lotlip_data.manifests.formats.dataset_index import CHOSEN, SPLITS, read_dataset_summary, read_index
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import TRAINING_DONE, Run
from lotlip_data.manifests.settings.dataset import CleanSettings
from lotlip_data.manifests.settings.evaluation import SYNTHETIC
from lotlip_data.manifests.wording import count, plural
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.dataset.metadata import recipe_changes
from lotlip_data.pipeline.dataset.recipe import recipe_of
from lotlip_data.pipeline.dataset.score_limits import score_files
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from lotlip_data.pipeline.recaptioning.importing.claims import outdated_imports
from lotlip_data.pipeline.reporting.status import RunStatus, Stale
from lotlip_data.pipeline.reporting.training_status import training_settings


def find_not_started(manifest: Manifest, status: RunStatus) -> dict[str, list[str]]:
    """By stage, the captioners and trainings of the manifest that have no folder in the run yet."""
    trainings = {*status["trained"], *status["training"]}
    imported = [name for name in manifest.imported_names if name not in status["captioners"]]
    unscored = [entry.label for entry in manifest.scores if entry.label not in status.get("scorers", {})]
    return ({"import": imported} if imported else {}) | {
        "recaption": [name for name in _captioner_names(manifest) if name not in status["captioners"]],
        **({"score": unscored} if unscored else {}),
        "train": [entry.folder for entry in manifest.train if entry.folder not in trainings],
    }


def _captioner_names(manifest: Manifest) -> list[str]:
    try:
        if manifest.captioners:
            resolve_captioners(manifest.captioners)
    except UserError:
        return []  # `recaption` says what is wrong
    return manifest.captioner_names


def find_stale(run: Run, manifest: Manifest, status: RunStatus) -> list[Stale]:
    """What was made from an earlier state of its input. Reads dataset.json."""
    imports = outdated_imports(run, manifest.sources)
    stale = [Stale(stage="import", name=name, reason=reason) for name, reason in imports.items()]
    stale += _stale_scores(run, manifest)
    if status["dataset"]:
        reasons = _dataset_changes(run, manifest, status)
        stale += [Stale(stage="dataset", name="", reason=reason) for reason in reasons]
        stale += _stale_trainings(run, status) if status["trained"] else []
    return stale + _stale_evaluations(run, status)


def _stale_scores(run: Run, manifest: Manifest) -> list[Stale]:
    """Scorers whose scores of some shards are of other captions, images or settings than those of now."""
    stale = []
    shards = ledger.shards_with_images(run) if manifest.scores else []
    for entry in manifest.scores:
        try:
            record = score_file.read_scorer(run, entry.label)
        except UserError as error:
            stale.append(Stale(stage="score", name=entry.label, reason=str(error)))
            continue
        existing = set(storage.list_names(run.scorer(entry.label), score_file.ENDING))
        scored = {int(name.partition("-")[0]) for name in existing}
        wanted = score_files(run, record, shards) if record else {}
        if changed := sum(shard in scored and name not in existing for shard, name in wanted.items()):
            reason = f"images or captions of {count(changed, 'shard')} have changed since; score them again"
            stale.append(Stale(stage="score", name=entry.label, reason=reason))
    return stale


def _score_changes(run: Run, manifest: Manifest, summary: Mapping[str, Any]) -> list[str]:
    """How the scores and the rules on them differ from those of the build."""
    built = {name: scorer["id"] for name, scorer in summary.get("scorers", {}).items()}
    records = {entry.label: score_file.read_scorer(run, entry.label) for entry in manifest.scores}
    now = {name: record.id if record else "" for name, record in records.items()}
    lines = []
    if added := [name for name in now if name not in built]:
        lines.append(f"scores by {', '.join(added)} are not in it")
    if removed := [name for name in built if name not in now]:
        lines.append(f"it has scores by {', '.join(removed)}, which the manifest no longer names")
    if replaced := [name for name, id in built.items() if now.get(name, id) != id]:
        lines.append(f"scores by {', '.join(replaced)} were made again with other settings")
    settings = summary["manifest"]
    if settings.get("clean", {}).get("scores", []) != manifest.clean.model_dump(mode="json").get("scores", []):
        lines.append("`clean.scores` has changed")
    if settings.get("shard", {}).get("score_weights", {}) != manifest.shard.score_weights:
        lines.append("`shard.score_weights` has changed")
    return lines


def _dataset_changes(run: Run, manifest: Manifest, status: RunStatus) -> list[str]:
    try:
        summary = read_dataset_summary(run)
        recipe = recipe_of(run, manifest, _chosen_captioners(summary))
    except UserError as error:
        return [str(error)]
    lines = []
    known = summary["captioners"]
    if added := [name for name in recipe.captioners if name not in known]:
        lines.append(f"captions by {', '.join(added)} are not in it")
    if removed := [name for name in known if name not in recipe.captioners]:
        lines.append(f"it has captions by {', '.join(removed)}, which the run no longer has")
    if replaced := [name for name, id in known.items() if recipe.captioners.get(name, id) != id]:
        lines.append(f"captions by {', '.join(replaced)} were made again with other settings")
    lines += [change for change in recipe_changes(summary, recipe) if not change.startswith("captioners was")]
    lines += _score_changes(run, manifest, summary)
    lines += _comparison_changes(summary["manifest"].get("clean", {}), manifest.clean)
    if missing := status["images"] - summary["fetched"]:
        text = f"{count(missing, 'downloaded image')} {plural(missing, 'is')} not in it"
        lines.append(text if missing > 0 else f"it has {count(-missing, 'image')} that the run no longer has")
    return lines or _newer_inputs(run, list(recipe.captioners))


def _chosen_captioners(summary: Mapping[str, Any]) -> list[str]:
    """The captioners that `shard --captioners` named; none if the dataset has the default ones."""
    return list(summary["captioners"]) if summary.get(CHOSEN) else []


def _comparison_changes(built: dict[str, Any], clean: CleanSettings) -> list[str]:
    """The settings that leave out images because of other images, where they differ from those of the build."""
    now = clean.model_dump(mode="json")
    names = ["duplicates", "near_duplicates", "evaluation_sets"]
    if built.get("near_duplicates") is not None and clean.near_duplicates is not None:
        names.append("keep")
    if built.get("evaluation_sets") and clean.evaluation_sets:
        names.append("evaluation_distance")
    return [f"{name} was {built[name]}, is {now[name]}" for name in names if name in built and built[name] != now[name]]


def _newer_inputs(run: Run, captioners: list[str]) -> list[str]:
    """Captions and images that were written after dataset.json: a build with new inputs always writes it again."""
    built = _change(run.shards, "dataset.json")
    lines = []
    for name in captioners:
        folder = run.captioner(name)
        changed = storage.last_change(folder, storage.list_names(folder, ".parquet"))
        if built is not None and changed is not None and changed > built:
            lines.append(f"captions by {name} have changed since it was built")
    changed = storage.last_change(run.images, storage.list_names(run.images, "_stats.json"))
    if built is not None and changed is not None and changed > built:
        lines.append("images were downloaded again since it was built")
    return lines


def _stale_trainings(run: Run, status: RunStatus) -> list[Stale]:
    try:
        shards = [entry["tar"]["sha256"] for entry in read_index(run)[SPLITS["train"]] if entry["samples"]]
    except (UserError, KeyError, TypeError):
        return []  # the dataset itself is damaged
    reason = "the dataset has changed since; to train on it, give another name or remove the folder"
    stale = []
    for name in status["trained"]:
        recorded = training_settings(run, name).get("dataset")
        if recorded is not None and recorded != shards:
            stale.append(Stale(stage="train", name=name, reason=reason))
    return stale


def _stale_evaluations(run: Run, status: RunStatus) -> list[Stale]:
    """Result files that are older than the training of their model."""
    stale = []
    for name in status["trained"]:
        trained = _change(run.train(name), TRAINING_DONE)
        for url in status["evaluated"].get(name, []):
            folder, _, file = url.rpartition("/")
            evaluated = _change(folder, file)
            if trained is not None and evaluated is not None and evaluated < trained:
                reason = f"{run.relative(url)} is of an earlier training; remove it and evaluate again"
                stale.append(Stale(stage="eval", name=name, reason=reason))
    return stale


def _change(folder: str, name: str) -> float | None:
    return storage.last_change(folder, [name])


def next_command(run: Run, manifest: Manifest, status: RunStatus, stale: list[Stale]) -> str:
    """The command that brings the run forward: the first stage that is not complete."""
    url = shlex.quote(run.url)
    download = status["download"]
    if download is None or status["fetched"] < (status["shards"] or 0):
        return f"lotlip-data download {shlex.quote(run.manifest)} {url}"
    wanted = _chosen_captioners(_summary(run, status))
    is_outdated = any(entry["stage"] == "import" for entry in stale)
    if is_outdated or _has_captions_left(manifest.imported_names, wanted, status):
        return f"lotlip-data import {url}"
    is_uncaptioned = not status["captioners"] and not manifest.captioners
    if is_uncaptioned or _has_captions_left(_captioner_names(manifest), wanted, status):
        return f"lotlip-data recaption {url}"
    if _has_scores_left(manifest, status, stale):
        return f"lotlip-data score {url}"
    if not status["dataset"] or any(entry["stage"] == "dataset" for entry in stale):
        return f"lotlip-data shard {url}"
    if any(entry.folder not in status["trained"] for entry in manifest.train):
        return f"lotlip-data train {url}"
    if _has_evaluations_left(run, manifest, status):
        return f"lotlip-data run {shlex.quote(run.manifest)} {url}"
    return f"lotlip-data view {url}"


def _summary(run: Run, status: RunStatus) -> dict[str, Any]:
    """dataset.json without its lists; empty if there is none, or a damaged one, which is stale."""
    if status["dataset"]:
        with contextlib.suppress(UserError):
            return read_dataset_summary(run)
    return {}


def _has_scores_left(manifest: Manifest, status: RunStatus, stale: list[Stale]) -> bool:
    scorers = status.get("scorers", {})
    if any(entry["stage"] == "score" for entry in stale):
        return True
    return any(entry.label not in scorers or scorers[entry.label]["left"] for entry in manifest.scores)


def _has_captions_left(names: Iterable[str], wanted: Sequence[str], status: RunStatus) -> bool:
    """Whether a captioner has images left.

    Args:
        names: The captioners.
        wanted: The only ones that count, if there are any.
        status: The status of the run.
    """
    names = [name for name in names if not wanted or name in wanted]
    return any(status["captioned"].get(name, 0) < status["fetched"] for name in names)


def _has_evaluations_left(run: Run, manifest: Manifest, status: RunStatus) -> bool:
    for entry in manifest.train:
        results = status["evaluated"].get(entry.folder, [])
        for evaluation in manifest.evaluate:
            beside_model = storage.join(run.train(entry.folder), f"eval-{evaluation.label}.json")
            expected = run.evaluation(entry.folder) if evaluation.task == SYNTHETIC else beside_model
            if expected not in results:
                return True
    return False
