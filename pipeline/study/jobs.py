"""The jobs of the study: write the datasets of a seed, or train and evaluate an experiment for a seed.

STUDY/results/KEY-SEED.json     result of an experiment and seed, created once, when the job is complete
STUDY/work/KEY-SEED/            the unfinished training; it resumes from its last checkpoint
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import TRAINING_DONE
from lotlip_data.pipeline.study import data
from lotlip_data.pipeline.study.experiments import Design, Experiment, Texts


@dataclass(frozen=True)
class DataJob:
    """Writes the datasets of a seed."""

    texts: Texts
    seed: int

    def is_done(self, study: str, design: Design) -> bool:
        return data.is_written(study, design, self.texts, self.seed)

    def prerequisite(self) -> None:
        """The job that must be done before this one: none."""

    def run(self, study: str, design: Design) -> None:
        data.write_datasets(study, design, self.texts, self.seed)

    def __str__(self) -> str:
        return f"data of seed {self.seed}, {self.texts}"


@dataclass(frozen=True)
class TrainingJob:
    """Trains and evaluates an experiment for a seed."""

    experiment: Experiment
    seed: int

    def name(self, design: Design) -> str:
        """KEY-SEED."""
        return f"{self.experiment.key(design)}-{self.seed}"

    def is_done(self, study: str, design: Design) -> bool:
        return storage.exists(result_url(study, self.name(design)))

    def prerequisite(self) -> DataJob:
        """The job that must be done before this one."""
        return DataJob(self.experiment.texts, self.seed)

    def run(self, study: str, design: Design) -> None:
        """Train and evaluate with the product's own functions, store the result and remove the model."""
        from lotlip_data.training.trainer import train

        experiment, out = self.experiment, storage.join(study, "work", self.name(design))
        config, steps_before, cpu_start = experiment.config(design, self.seed), _steps_done(out), time.process_time()
        trained = train(config, data.dataset_path(study, design, experiment, self.seed), out)
        seconds, new_steps = time.process_time() - cpu_start, trained.steps - steps_before
        content = {
            "key": experiment.key(design),
            "seed": self.seed,
            "method": experiment.method,
            "settings": dict(experiment.settings),
            "scale": experiment.scale,
            "texts": experiment.texts,
            "steps": trained.steps,
            "loss": trained.loss,
            "seconds": round(seconds * trained.steps / new_steps, 1) if new_steps > 0 else None,
            "figures": _evaluate(trained.model, self, design),
        }
        storage.create(result_url(study, self.name(design)), (json.dumps(content, indent=1) + "\n").encode())
        storage.remove(out)

    def __str__(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.experiment.settings)
        scale = f", {self.experiment.scale}×" if self.experiment.scale > 1 else ""
        return f"{self.experiment.method}{settings}{scale}, {self.experiment.texts}, seed {self.seed}"


Job = DataJob | TrainingJob


def result_url(study: str, name: str) -> str:
    """The file of a result; `name` is KEY-SEED."""
    return storage.join(study, "results", f"{name}.json")


def plan_jobs(experiments: Iterable[Experiment], seeds: Iterable[int]) -> list[Job]:
    """All jobs of the experiments, in the order in which they should run.

    Each experiment has all its seeds in a row, so that the first tables are complete early. The data of a seed come
    before the first training that reads them.
    """
    jobs: dict[Job, None] = {}
    for experiment in experiments:
        for seed in seeds:
            jobs.setdefault(DataJob(experiment.texts, seed))
            jobs.setdefault(TrainingJob(experiment, seed))
    return list(jobs)


def _evaluate(model: str, job: TrainingJob, design: Design) -> dict[str, float]:
    """The figures of a result, by name.

    R@1 and R@5 in both directions and top-1 accuracy; per retrieval set the share of truncated texts; for the long
    texts of `detailed`, which may be truncated, the highest possible R@1; the text tower's MFLOP per text. All but the
    last are in percent.
    """
    from lotlip_data.pipeline.study.metrics import mean_text_flops, recall_ceiling
    from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot
    from lotlip_data.training.evaluation.models import load_embedder

    retrieval_sets, classes = data.evaluation_sets(job.seed, job.experiment.texts, design.gallery)
    results = evaluate_zero_shot(
        load_embedder(model, "cpu"),
        storage.join(model, "..", "eval.json"),
        retrieval_sets=retrieval_sets,
        classification_sets=[classes],
    )
    retrieval = results["retrieval"]
    figures = {
        f"{name}.{direction}.{recall}": 100 * retrieval[name][direction][recall]
        for name in retrieval
        for direction in ("t2i", "i2t")
        for recall in ("R@1", "R@5")
    }
    figures |= {f"{name}.cut": 100 * retrieval[name]["cut"] for name in retrieval}
    figures["class.top1"] = 100 * results["classification"][classes.name]["top1"]
    if job.experiment.texts == "detailed":
        for long in retrieval_sets[:2]:
            ceiling = recall_ceiling(model, long.texts)
            figures |= {f"{long.name}.{direction}.most": most for direction, most in ceiling.items()}
    return figures | {"flops.text": mean_text_flops(model, retrieval_sets[0].texts)}


def _steps_done(out: str) -> int:
    """The step from which the training in the folder `out` resumes."""
    from lotlip_data.training.checkpointing import CheckpointManager
    from lotlip_data.training.trainer import read_result

    if storage.exists(storage.join(out, TRAINING_DONE)):
        return read_result(out).steps
    return max(CheckpointManager(out, 1).steps(), default=0)
