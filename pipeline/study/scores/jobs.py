"""The jobs of the study of scores: write the images of a seed, or train and evaluate a cell.

STUDY/scores-results/KEY-SEED-RATE.json    result of a cell, created once, when the job is complete
STUDY/scores-work/KEY-SEED-RATE/           the unfinished training; it resumes from its last checkpoint
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import cells, world
from lotlip_data.pipeline.study.scores import data
from lotlip_data.pipeline.study.scores.design import RATES, ROLES, Role, ScoresDesign


@dataclass(frozen=True)
class ImagesJob:
    """Writes the images of a seed."""

    seed: int

    def is_done(self, study: str, design: ScoresDesign) -> bool:
        return data.has_images(study, design, self.seed)

    def prerequisites(self) -> tuple[()]:
        """The jobs that must be done before this one: none."""
        return ()

    def run(self, study: str, design: ScoresDesign) -> None:
        data.write_images(study, design, self.seed)

    def __str__(self) -> str:
        return f"images of seed {self.seed}"


@dataclass(frozen=True)
class CellJob:
    """Trains and evaluates at an error rate; the scorer scores the texts too."""

    seed: int
    rate: float
    role: Role

    def is_done(self, study: str, design: ScoresDesign) -> bool:
        return storage.exists(result_url(study, design, self))

    def prerequisites(self) -> "tuple[ImagesJob | CellJob]":
        """The job that must be done before this one."""
        return (ImagesJob(self.seed) if self.role in ("scorer", "all") else CellJob(self.seed, self.rate, "scorer"),)

    def run(self, study: str, design: ScoresDesign) -> None:
        """Train and evaluate with the product's own functions, store the result and remove the model."""
        from lotlip_data.training.trainer import train

        started = time.process_time()
        scenes = data.training_scenes(self.seed, design.scenes)
        texts = [data.sub_captions(scene, self.rate) for scene in scenes]
        run, figures = self._dataset(study, design, texts)
        out = storage.join(study, "scores-work", _name(design, self))
        trained = train(design.config(self.role, self.seed, data.text_tower(study, design, self.role)), run, out)
        figures |= _retrieval_figures(study, design, self.seed, trained.model)
        if self.role == "scorer":
            figures |= self._score(study, design, trained.model, run, texts)
        content = {
            "key": design.key(self.role),
            "seed": self.seed,
            "rate": self.rate,
            "role": self.role,
            "steps": trained.steps,
            "loss": trained.loss,
            "seconds": round(time.process_time() - started, 1),
            "figures": figures,
        }
        cells.create(result_url(study, design, self), content)
        storage.remove(out)

    def _dataset(
        self, study: str, design: ScoresDesign, texts: Sequence[data.Texts]
    ) -> tuple[str, dict[str, float | None]]:
        """The dataset of the training, and figures about it."""
        if self.role in ("scorer", "all"):
            return data.write_dataset(study, design, self.seed, f"{self.rate:g}/all", texts), {}
        scored = json.loads(self._scores_file(study, design).read_text())
        if self.role == "weighted":
            name = f"{self.rate:g}/scored-{design.key('scorer')}"
            return data.write_dataset(study, design, self.seed, name, texts, scored), {}
        kept, figures = self._without_lowest(design, texts, scored)
        name = f"{self.rate:g}/filtered-{design.key('filtered')}"
        return data.write_dataset(study, design, self.seed, name, kept), figures

    def _without_lowest(
        self, design: ScoresDesign, texts: Sequence[data.Texts], scored: Sequence[Any]
    ) -> tuple[list[data.Texts], dict[str, float | None]]:
        """The texts without the sub-captions with the lowest scores, and the share of wrong ones in what is left."""
        from lotlip_data.pipeline.study.scores.detection import labels

        flat = np.array([score for by_writer in scored for _, scores in by_writer.values() for score in scores])
        keep = flat > np.quantile(flat, design.dropped)
        kept_flags = iter(keep.tolist())
        kept = [
            {writer: [piece for piece in pieces if next(kept_flags)] for writer, pieces in by_writer.items()}
            for by_writer in texts
        ]
        wrong, statement = labels(data.training_scenes(self.seed, design.scenes), texts)
        return kept, {
            "kept": 100 * float(keep.mean()),
            "wrong.all": 100 * float(wrong[keep].mean()),
            "wrong.statements": 100 * float(wrong[keep & statement].mean()),
        }

    def _score(
        self, study: str, design: ScoresDesign, model: str, run: str, texts: Sequence[data.Texts]
    ) -> dict[str, float | None]:
        """Score the texts for the other arms. Returns the figures of detection."""
        from lotlip_data.pipeline.study.scores.detection import detection_figures, labels, score_texts

        scores = score_texts(model, texts, data.dataset_features(run), design.weights, design.neighbours)
        storage.replace(str(self._scores_file(study, design)), json.dumps(scores.by_text).encode())
        return detection_figures(scores, *labels(data.training_scenes(self.seed, design.scenes), texts))

    def _scores_file(self, study: str, design: ScoresDesign) -> Path:
        return data.folder(study, design, self.seed) / f"{self.rate:g}" / f"scores-{design.key('scorer')}.json"

    def __str__(self) -> str:
        return f"{self.role}, errors {self.rate:.0%}, seed {self.seed}"


ScoresJob = ImagesJob | CellJob


def _name(design: ScoresDesign, job: CellJob) -> str:
    return f"{design.key(job.role)}-{job.seed}-{job.rate:g}"


def result_url(study: str, design: ScoresDesign, job: CellJob) -> str:
    """The file of a cell's result."""
    return storage.join(study, "scores-results", f"{_name(design, job)}.json")


def plan_jobs(seeds: Sequence[int], rates: Sequence[float] = RATES, roles: Sequence[Role] = ROLES) -> list[ScoresJob]:
    """All jobs in the order in which they should run: one seed after another, so that complete seeds are compared."""
    jobs: list[ScoresJob] = []
    for seed in seeds:
        jobs.append(ImagesJob(seed))
        jobs += [CellJob(seed, rate, role) for role in roles for rate in rates]
    return jobs


def _retrieval_figures(study: str, design: ScoresDesign, seed: int, model: str) -> dict[str, float | None]:
    """R@1 in percent in both directions, for each writer of RETRIEVAL_TEXTS, among groups of near twins."""
    from lotlip_data.synthetic.hard_scenes import crowded_text
    from lotlip_data.training.evaluation.models import load_embedder

    scenes = data.gallery_scenes(design, seed)
    texts = {writer: [crowded_text(scene, writer) for scene in scenes] for writer in data.RETRIEVAL_TEXTS}
    return {**world.retrieval_figures(load_embedder(model, "cpu"), data.gallery_features(study, design, seed), texts)}
