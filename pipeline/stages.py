"""The line: every stage in its order, from a list of URLs to an evaluated model. Read this file first.

    partition   lists of URLs → shards of rows, in seeded random order         pipeline/url_lists/partition.py
    download    rows → images, with img2dataset on Ray                         pipeline/downloading/stage.py
    recaption   images → long texts, on pools of Ray actors                    pipeline/recaptioning/stage.py
    shard       images + texts → the dataset                                   pipeline/dataset/stage.py
    train       the dataset → LoTLIP, or a method that it is compared with     training/trainer.py
    evaluate    a trained model → recall and accuracy                          training/evaluation/evaluate.py

Each stage reads what the one before it committed, skips what it has committed itself, and can be run by itself.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.outcome import Outcome
from lotlip_data.pipeline.model_stages.evaluate import evaluate
from lotlip_data.pipeline.model_stages.train import train

logger = logging.getLogger(__name__)


def download(manifest: Manifest, run: Run, retry_failed: bool = False, accept_failures: bool = False) -> Outcome:
    """Cut the manifest's lists into shards, once, and fetch every shard that is not fetched yet.

    `retry_failed` and `accept_failures` are those of `pipeline.download`.
    """
    from lotlip_data.manifests.manifest import freeze
    from lotlip_data.pipeline.downloading.failures import format_text
    from lotlip_data.pipeline.downloading.stage import download as fetch

    freeze(manifest, run)
    summary = fetch(manifest, run, retry_failed=retry_failed, accept_failures=accept_failures)
    for row in format_text(summary.failures.to_dict()):
        logger.info(row)
    return Outcome(not summary.nothing_to_do, summary.failed_shards, summary.to_dict())


def recaption(
    manifest: Manifest,
    run: Run,
    captioners: Sequence[str | Mapping[str, Any]] = (),
    pool: Mapping[str, Any] | None = None,
) -> Outcome:
    """Caption what is fetched with each captioner; `captioners` and `pool` go before what the manifest says."""
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption as work

    summary = work(run, resolve_captioners(captioners or manifest.captioners, pool))
    return Outcome(not summary.nothing_to_do, summary.failed, summary.to_dict())


def shard(manifest: Manifest, run: Run) -> Outcome:
    """Join images and captions into the dataset."""
    from lotlip_data.pipeline.dataset.stage import shard as write

    summary = write(manifest, run)
    return Outcome(not summary.nothing_to_do, summary.failed, summary.to_dict())


STAGES: dict[str, Callable[[Manifest, Run], Outcome]] = {
    "download": download,
    "recaption": recaption,
    "shard": shard,
    "train": train,
    "evaluate": evaluate,
}


def run_pipeline(manifest: Manifest, run: Run) -> Outcome:
    """Every stage in turn. A stage that failed in part does not keep those after it from using what there is."""
    total = Outcome(did_something=False)
    for name, stage in STAGES.items():
        logger.info(f"== {name}")
        try:
            outcome = stage(manifest, run)
        except UserError as error:
            if not total.failed:
                raise
            total.failed.append(f"{name}: {error}")  # what failed before is the reason
            break
        if not outcome.did_something and not outcome.failed:
            logger.info(f"{name}: nothing to do")
        total.did_something |= outcome.did_something
        total.failed += [f"{name}: {line}" for line in outcome.failed]
        total.figures[name] = outcome.figures
    return total
