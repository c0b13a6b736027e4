"""What one process of the study does: write the data of a seed, or train and evaluate a row for a seed.

STUDY/results/KEY-SEED.json     figures of a row and seed, created once, last of all
STUDY/work/KEY-SEED/            the training under way: killed, it goes on from its last checkpoint
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from lotlip_data.manifests import storage
from lotlip_data.pipeline.study import data
from lotlip_data.pipeline.study.experiments import Design, Experiment, Texts


@dataclass(frozen=True)
class Data:
    """The data of a seed."""

    texts: Texts
    seed: int

    def is_done(self, study: str, design: Design) -> bool:
        return data.is_written(study, design, self.texts, self.seed)

    def do(self, study: str, design: Design) -> None:
        data.write(study, design, self.texts, self.seed)

    def __str__(self) -> str:
        return f"the data of seed {self.seed}, {self.texts}"


@dataclass(frozen=True)
class Training:
    """A row and a seed."""

    row: Experiment
    seed: int

    def name(self, design: Design) -> str:
        return f"{self.row.key(design)}-{self.seed}"

    def is_done(self, study: str, design: Design) -> bool:
        return storage.exists(result_of(study, self.name(design)))

    def do(self, study: str, design: Design) -> None:
        """Train and evaluate as any user would, keep the figures, and remove the model."""
        from lotlip_data.training.trainer import train

        out = storage.join(study, "work", self.name(design))
        config, before, began = self.row.config(design, self.seed), _steps_done(out), time.process_time()
        trained = train(config, data.dataset_of(study, design, self.row, self.seed), out)
        seconds = time.process_time() - began
        figures = _evaluate(trained.model, self, design)
        content = {
            "key": self.row.key(design),
            "seed": self.seed,
            "method": self.row.method,
            "settings": dict(self.row.settings),
            "scale": self.row.scale,
            "texts": self.row.texts,
            "steps": trained.steps,
            "loss": trained.loss,
            "seconds": round(seconds * trained.steps / (trained.steps - before), 1) if before < trained.steps else None,
            "figures": figures,
        }
        storage.create(result_of(study, self.name(design)), (json.dumps(content, indent=1) + "\n").encode())
        storage.remove(out)

    def __str__(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.row.settings)
        data = f", {self.row.scale}×" if self.row.scale > 1 else ""
        return f"{self.row.method}{settings}{data}, {self.row.texts}, seed {self.seed}"


def result_of(study: str, name: str) -> str:
    return storage.join(study, "results", f"{name}.json")


def all_of(rows: Iterable[Experiment], seeds: Iterable[int]) -> list[Data | Training]:
    """Everything that these rows take: row by row, each with all its seeds, so that early tables are whole early; the
    data of a seed before its first training."""
    found: dict[Data | Training, None] = {}
    for one in rows:
        for seed in seeds:
            found.setdefault(Data(one.texts, seed))
            found.setdefault(Training(one, seed))
    return list(found)


def needs(task: Data | Training) -> Data | None:
    """What has to be there first."""
    return Data(task.row.texts, task.seed) if isinstance(task, Training) else None


def _evaluate(model: str, task: Training, design: Design) -> dict[str, float]:
    """R@1 and R@5 both ways and top-1, in percent; of each set the share of texts that is cut; text FLOPs.

    Of the long texts of `detailed`, which are cut, what can be found at most, too.
    """
    from lotlip_data.pipeline.study.metrics import most_findable, text_flops
    from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot
    from lotlip_data.training.evaluation.models import load_embedder

    pairs, classes = data.evaluation(task.seed, task.row.texts, design.gallery)
    found = evaluate_zero_shot(
        load_embedder(model, "cpu"),
        storage.join(model, "..", "eval.json"),
        retrieval_sets=pairs,
        classification_sets=[classes],
    )
    figures = {
        f"{name}.{way}.{recall}": 100 * of[way][recall]
        for name, of in found["retrieval"].items()
        for way in ("t2i", "i2t")
        for recall in ("R@1", "R@5")
    }
    figures |= {f"{name}.cut": 100 * of["cut"] for name, of in found["retrieval"].items()}
    figures["class.top1"] = 100 * found["classification"][classes.name]["top1"]
    if task.row.texts == "detailed":
        for long in pairs[:2]:
            figures |= {f"{long.name}.{way}.most": most for way, most in most_findable(model, long.texts).items()}
    return figures | {"flops.text": text_flops(model, pairs[0].texts)}


def _steps_done(out: str) -> int:
    """From which step the training in that folder will go on."""
    from lotlip_data.training.checkpointing import CheckpointManager
    from lotlip_data.training.trainer import result_of as trained

    if storage.exists(storage.join(out, "done.json")):
        return trained(out).steps
    return max(CheckpointManager(out, 1).steps(), default=0)
