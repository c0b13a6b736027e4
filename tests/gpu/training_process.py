"""A training in a process of its own, and the attention that its first step uses.

As a program, `python -m tests.gpu.training_process RUN OUT SETTINGS [--profile]` trains with SETTINGS (JSON), prints
what it has measured as JSON, and leaves the model in OUT. With `--profile` it runs one step and prints the names of the
attention operations in it.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 3
"""Steps that are not measured: kernels are chosen and compiled in them."""


def measure(run: str, out: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and read the metrics."""
    from lotlip_data.training.config import make_config
    from lotlip_data.training.trainer import train

    result = train(make_config(**settings), run, out)
    lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    measured = lines[WARM_UP_STEPS:] or lines
    return {
        "loss": result.loss,
        "steps": result.steps,
        "precision": json.loads(Path(out, "config.json").read_text())["precision"],
        "samples_per_second": round(statistics.median(line["samples_per_second"] for line in measured), 1),
        "tokens_per_step": statistics.mean(line["tokens"] for line in lines),
        "peak_memory_gib": max(line["memory_gib"] for line in lines),
    }


def attention_of_a_step(run: str, out: str, settings: dict[str, Any]) -> list[str]:
    """The names of the attention operations of one step, forward and backward."""
    import torch

    from lotlip_data.training.config import make_config
    from lotlip_data.training.data.dataset import open_dataset
    from lotlip_data.training.trainer import Trainer

    precision = "bf16" if torch.cuda.is_available() else "float32"
    trainer = Trainer(make_config(**{"precision": precision, **settings}), open_dataset(run), out)
    trainer.images.fill(trainer.group)  # type: ignore[union-attr]
    batch = trainer.make_batch(0)
    with torch.profiler.profile() as profile:
        trainer.step(0, batch)
    return sorted({event.key for event in profile.key_averages() if "scaled_dot_product" in event.key})


if __name__ == "__main__":
    run, out, settings = sys.argv[1:4]
    work = attention_of_a_step if sys.argv[4:] == ["--profile"] else measure
    print(json.dumps(work(run, out, json.loads(settings))))
