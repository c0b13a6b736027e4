"""The line: every stage in its order, from a list of URLs to an evaluated model. Read this file first.

    partition   lists of URLs → shards of rows, in seeded random order         pipeline/partition.py
    download    rows → images, with img2dataset on Ray                         pipeline/download.py
    recaption   images → long texts, on pools of Ray actors                    pipeline/recaption.py
    shard       images + texts → the dataset                                   pipeline/shard.py
    train       the dataset → LoTLIP, or a method that it is compared with     training/train.py
    evaluate    a trained model → recall and accuracy                          training/evaluate.py

Each stage reads what the one before it committed, skips what it has committed itself, and can be run by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline import trainings
from lotlip_data.pipeline.trainings import config_of, name_of, settings_of

if TYPE_CHECKING:
    from lotlip_data.training.train import TrainResult

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a stage did. `failed` has a line for each thing that it could not do; `figures` are for scripts."""

    did_something: bool
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def download(
    manifest: Manifest, run: Run, say: Say, retry_failed: bool = False, accept_failures: bool = False
) -> Outcome:
    """Cut the manifest's lists into shards, once, and fetch every shard that is not fetched yet.

    `retry_failed` and `accept_failures` are those of `pipeline.download`.
    """
    from lotlip_data.manifests.manifest import freeze
    from lotlip_data.pipeline.download import download as fetch
    from lotlip_data.pipeline.failures import as_lines

    freeze(manifest, run)
    summary = fetch(manifest, run, say, retry_failed=retry_failed, accept_failures=accept_failures)
    for row in as_lines(summary.failures.figures()):
        say(row)
    return Outcome(not summary.nothing_to_do, summary.failed_shards, summary.figures())


def recaption(
    manifest: Manifest,
    run: Run,
    say: Say,
    captioners: Sequence[str | Mapping[str, Any]] = (),
    pool: Mapping[str, Any] | None = None,
) -> Outcome:
    """Caption what is fetched with each captioner; `captioners` and `pool` go before what the manifest says."""
    from lotlip_data.pipeline.choice import choose
    from lotlip_data.pipeline.recaption import recaption as work

    summary = work(run, choose(captioners or manifest.captioners, pool), say)
    return Outcome(not summary.nothing_to_do, summary.failed, summary.figures())


def shard(manifest: Manifest, run: Run, say: Say) -> Outcome:
    """Join images and captions into the dataset."""
    from lotlip_data.pipeline.shard import shard as write

    summary = write(manifest, run, say)
    return Outcome(not summary.nothing_to_do, summary.failed, summary.figures())


def train(
    manifest: Manifest,
    run: Run,
    say: Say,
    entries: Sequence[Mapping[str, Any]] = (),
    resume: bool = True,
    on_ray: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train each model of the manifest's `train` section in turn; `entries` go before it.

    An entry holds settings of `TrainConfig`, a `name`, which is its method's where none is given, and, for a training
    on Ray, `ray`: its `workers`, and the `gpus` and `cpus` of each. `on_ray` has these for all entries.
    """
    import os

    import torch

    from lotlip_data.pipeline.tasks import brief, run_tasks

    fit = partial(_fit, run, resume, on_ray)
    total = Outcome(did_something=False)
    if not entries:
        trainings.check(manifest.train, run.manifest)
    asked = list(entries or manifest.train)
    finished = [entry for entry in asked if storage.exists(storage.join(run.train(name_of(entry)), "done.json"))]
    left = [entry for entry in asked if entry not in finished]
    several = on_ray or any("ray" in entry for entry in asked) or os.environ.get("WORLD_SIZE", "1") != "1"
    many = torch.cuda.is_available() or several
    here = finished if len(left) > 1 and not many else asked
    results: Any = ((entry, fit(entry, _under(name_of(entry), say))) for entry in here)
    if here is finished:  # without a GPU, a training is one core's work, so they go side by side
        say(f"{len(left)} trainings, a CPU each; their steps are in {run.train('NAME')}/metrics.jsonl")
        results = chain(results, run_tasks(fit, left))
    for entry, result in results:
        name = name_of(entry)
        if isinstance(result, Exception):
            total.failed.append(f"{name}: {brief(result)}")
            say(total.failed[-1])
            continue
        if result.did_something:
            say(f"{name}: {result.steps} steps, loss {result.loss:.3f}, {result.seconds:.0f} s")
        total.did_something |= result.did_something
        total.figures[name] = {"steps": result.steps, "loss": result.loss, "seconds": result.seconds}
    return total


def _fit(
    run: Run,
    resume: bool,
    on_ray: Mapping[str, Any] | None,
    entry: Mapping[str, Any],
    say: Say = lambda line: None,
) -> "TrainResult":
    from lotlip_data.training.train import require_new
    from lotlip_data.training.train import train as fit

    config, out = config_of(entry), run.train(name_of(entry))
    workers = on_ray or entry.get("ray")
    if workers is None:
        return fit(config, run.url, out, resume=resume, say=say)
    from lotlip_data.pipeline.train_ray import Workers, train_on_ray

    if not resume:
        require_new(out)
    return train_on_ray(settings_of(entry), run, out, Workers.of(workers))


def features(
    manifest: Manifest, run: Run, say: Say, tower: str | None = None, image_size: int | None = None, gpus: float = 0
) -> Outcome:
    """Compute the features of the dataset's images by an image tower, or by those of the manifest's trainings."""
    from lotlip_data.pipeline.features import compute_features
    from lotlip_data.training.config import PAPER_TOWER

    configs = [config_of(entry) for entry in manifest.train]
    of_manifest = {(one.image_tower, one.image_size) for one in configs if one.images == "features"}
    total = Outcome(did_something=False)
    for name, size in [(tower, image_size)] if tower else sorted(of_manifest, key=str) or [(PAPER_TOWER, image_size)]:
        summary = compute_features(run, name, size, gpus, say)
        total.did_something |= summary.computed > 0
        total.failed += summary.failed
        total.figures[name] = {"there": summary.there, "computed": summary.computed, "failed": len(summary.failed)}
    return total


def evaluate(manifest: Manifest, run: Run, say: Say) -> Outcome:
    """Evaluate each model of the manifest's `train` section on the tasks of its `evaluate` section."""
    total = Outcome(did_something=False)
    if not manifest.evaluate:
        say("the manifest's `evaluate` names no task")
        return total
    for name in map(name_of, manifest.train):
        out = run.evaluation(name)
        if not storage.exists(storage.join(run.train(name), "done.json")):
            total.failed.append(f"{name}: not trained yet; run `lotlip-data train {run.url}`")
            continue
        total.did_something |= not storage.exists(out)
        total.figures[name] = evaluate_model(storage.join(run.train(name), "model"), out, _under(name, say))
    return total


def evaluate_model(model: str, out: str, say: Say, device: str | None = None) -> dict[str, Any]:
    """Evaluate one model's folder on unseen scenes of the offline world; results go to the JSON object `out`."""
    from lotlip_data.training.embedders import load_embedder
    from lotlip_data.training.evaluate import evaluate as measure
    from lotlip_data.world import tasks

    return measure(
        load_embedder(model, device),
        out,
        retrieval_sets=tasks.retrieval_sets(),
        classification_sets=tasks.classification_sets(),
        say=say,
    )


def _under(name: str, say: Say) -> Say:
    return lambda line: say(f"{name}: {line}")


STAGES: dict[str, Callable[[Manifest, Run, Say], Outcome]] = {
    "download": download,
    "recaption": recaption,
    "shard": shard,
    "train": train,
    "evaluate": evaluate,
}


def run_all(manifest: Manifest, run: Run, say: Say) -> Outcome:
    """Every stage in turn. A stage that failed in part does not keep those after it from using what there is."""
    total = Outcome(did_something=False)
    for name, stage in STAGES.items():
        say(f"== {name}")
        try:
            outcome = stage(manifest, run, say)
        except UserError as error:
            if not total.failed:
                raise
            total.failed.append(f"{name}: {error}")  # what failed before is the reason
            break
        if not outcome.did_something and not outcome.failed:
            say(f"{name}: nothing to do")
        total.did_something |= outcome.did_something
        total.failed += [f"{name}: {line}" for line in outcome.failed]
        total.figures[name] = outcome.figures
    return total
