"""The jobs of the reproduction study: write the data of a seed, or train and evaluate an arm for a seed.

STUDY/results/KEY-SEED.json     result of an arm and seed, created once, when the job is complete
STUDY/models/KEY-SEED/          the model, if another arm starts from it
STUDY/work/KEY-SEED/            the unfinished training; it resumes from its last checkpoint
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import cells, data
from lotlip_data.pipeline.study.curves import chance_loss, loss_curve
from lotlip_data.pipeline.study.design import ARMS, MODELS, Arm, Design, PlannedSeeds


@dataclass(frozen=True)
class DataJob:
    """Writes the data of a seed."""

    seed: int

    def is_done(self, study: str, design: Design) -> bool:
        return data.is_written(study, design, self.seed)

    def prerequisites(self) -> tuple[()]:
        """The jobs that must be done before this one: none."""
        return ()

    def run(self, study: str, design: Design) -> None:
        data.write(study, design, self.seed)

    def __str__(self) -> str:
        return f"data of seed {self.seed}"


@dataclass(frozen=True)
class TrainingJob:
    """Trains and evaluates an arm for a seed."""

    arm: Arm
    seed: int

    def name(self, design: Design) -> str:
        """KEY-SEED."""
        return job_name(self.arm.key(design), self.seed)

    def is_done(self, study: str, design: Design) -> bool:
        """Whether the result exists and, while a job that starts from the model is not done, the model too."""
        name = self.name(design)
        return storage.exists(result_url(study, name)) and (
            _model(study, name).exists() or all(job.is_done(study, design) for job in self._dependents)
        )

    def prerequisites(self) -> "tuple[DataJob] | tuple[DataJob, TrainingJob]":
        """The jobs that must be done before this one."""
        start = self.arm.start
        return (DataJob(self.seed), TrainingJob(ARMS[start], self.seed)) if start else (DataJob(self.seed),)

    def run(self, study: str, design: Design) -> None:
        """Train and evaluate with the product's own functions, store the result and remove the training.

        The study's folder is the current one, so that trainings record relative paths.
        """
        from lotlip_data.training.trainer import train

        name, started = self.name(design), time.process_time()
        out = storage.join(study, "work", name)
        config, before = self.arm.config(design, self.seed), _steps_done(out)
        trained = train(config, str(data.folder(study, design, self.seed)), out)
        figures = data.evaluate(study, design, self.seed, trained.model, _shares_image_tower(self.arm, design))
        seconds, steps = time.process_time() - started, trained.steps - before
        content = {
            "key": self.arm.key(design),
            "arm": self.arm.name,
            "seed": self.seed,
            "steps": trained.steps,
            "seconds": round(seconds * trained.steps / steps, 1) if steps else None,
            "figures": figures,
            "chance": round(chance_loss(config), 4),
            "curve": loss_curve(_metrics(out)),
        }
        cells.create(result_url(study, name), content)
        if self._dependents:  # after the result: a training whose model was moved cannot be evaluated again
            _keep(Path(trained.model), _model(study, name))
        storage.remove(out)

    @property
    def _dependents(self) -> "list[TrainingJob]":
        """The jobs that start from this one's model."""
        return [TrainingJob(arm, self.seed) for arm in ARMS.values() if arm.start == self.arm.name]

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


Job = DataJob | TrainingJob


def job_name(key: str, seed: int) -> str:
    """KEY-SEED, which names the result, the model and the unfinished training."""
    return f"{key}-{seed}"


def result_url(study: str, name: str) -> str:
    """The file of a result; `name` is KEY-SEED."""
    return storage.join(study, "results", f"{name}.json")


def plan_jobs(study: str, design: Design, arms: Iterable[Arm], planned: PlannedSeeds) -> list[Job]:
    """The jobs that are not done, in the order in which they should run: one seed after another, so that complete seeds
    are compared."""
    arms, jobs = list(arms), list[Job]()
    for seed in sorted({seed for arm in arms for seed in planned[arm.name]}):
        of_seed = [TrainingJob(arm, seed) for arm in arms if seed in planned[arm.name]]
        trainings = [job for job in of_seed if not job.is_done(study, design)]
        jobs += [DataJob(seed), *trainings] if trainings else []
    return jobs


def _shares_image_tower(arm: Arm, design: Design) -> bool:
    """Whether the image tower of the arm's model is the locked one of the design."""
    return arm.config(design, 0).lock_image and (not arm.start or _shares_image_tower(ARMS[arm.start], design))


def _model(study: str, name: str) -> Path:
    return Path(study, MODELS, name)


def _keep(model: Path, target: Path) -> None:
    """Move a model, unless it has been moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        model.rename(target)


def _metrics(out: str) -> list[dict[str, Any]]:
    from lotlip_data.training.metrics import metrics_url

    return [json.loads(line) for line in storage.read_bytes(metrics_url(out)).splitlines()]


def _steps_done(out: str) -> int:
    """The step from which the training in the folder `out` resumes."""
    from lotlip_data.manifests.run_layout import TRAINING_DONE
    from lotlip_data.training.checkpointing import CheckpointManager
    from lotlip_data.training.trainer import read_result

    if storage.exists(storage.join(out, TRAINING_DONE)):
        return read_result(out).steps
    return max(CheckpointManager(out, 1).steps(), default=0)
