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
from typing import Any

from lotlip_data.manifests.layout import Run
from lotlip_data.manifests.manifest import Manifest

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a stage did. `failed` has a line for each thing that it could not do; `figures` are for scripts."""

    did_something: bool
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def download(manifest: Manifest, run: Run, say: Say) -> Outcome:
    """Cut the manifest's lists into shards, once, and fetch every shard that is not fetched yet."""
    from lotlip_data.manifests.manifest import freeze
    from lotlip_data.pipeline.cluster import cluster
    from lotlip_data.pipeline.download import download as fetch
    from lotlip_data.pipeline.partition import partition

    freeze(manifest, run)
    partition(manifest, run, say)
    with cluster():
        summary = fetch(manifest, run, say)
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


def train(manifest: Manifest, run: Run, say: Say, only: Sequence[str] = ()) -> Outcome:
    """Train each model of the manifest's `train` section, in order."""
    raise NotImplementedError


def evaluate(manifest: Manifest, run: Run, say: Say, only: Sequence[str] = ()) -> Outcome:
    """Evaluate each trained model of the run."""
    raise NotImplementedError


STAGES: dict[str, Callable[[Manifest, Run, Say], Outcome]] = {
    "download": download,
    "recaption": recaption,
    "shard": shard,
    "train": train,
    "evaluate": evaluate,
}


def run_all(manifest: Manifest, run: Run, say: Say) -> Outcome:
    """Every stage in turn. A stage that failed in part does not stop those after it from using what there is."""
    total = Outcome(did_something=False)
    for name, stage in STAGES.items():
        say(f"== {name}")
        outcome = stage(manifest, run, say)
        total.did_something |= outcome.did_something
        total.failed += [f"{name}: {line}" for line in outcome.failed]
        total.figures[name] = outcome.figures
    return total
