"""Section 6: training: precision, attention, compiled or eager, memory, kill and resume, two processes."""

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lotlip_data.pipeline.core.gpus import ask_torch
from tests.gpu.scale import GIB, Scale, both
from tests.support.paths import ROOT
from tests.training import run_fixture
from tests.training.run_fixture import TRAINING_SCRIPT, write_run, write_towers
from tests.training.test_distributed import FIRST_STEP, finish, start

TOLERANCE = 0.01
"""Largest relative difference of losses that should be equal."""
MEMORY_RATIO = (0.5, 1.5)
"""Peak memory on a GPU, divided by that of the model of it."""
FUSED = ("flash", "efficient", "cudnn")
CHECKPOINT_DEVICES = """
import json, sys
import torch
from lotlip_data.training.checkpointing import CheckpointManager
step, state = CheckpointManager(sys.argv[1], 2).load_last()
devices = {str(value.device) for value in state["weights"].values()}
print(json.dumps([step, sorted(devices), torch.cuda.is_available()]))
"""


class Trainings:
    """A dataset and towers of a scale, and trainings on them, each done once."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale
        sizes = run_fixture.BASE if scale.on_gpu else run_fixture.TINY
        samples = scale.training["samples"]
        self.run = write_run(folder / "run", (samples // 2, samples - samples // 2))
        self.towers = write_towers(folder / "towers", dropout=0.0, sizes=sizes)  # eager and compiled draw differently
        batch, steps = scale.training["batch"], scale.training["steps"]
        schedule = {"batch": batch, "epochs": steps * batch / samples, "warm_up": 2, "checkpoint_every": 2}
        self.settings = {**self.towers, **schedule, "lr": 1e-4, "context_length": 96}
        self.trained = cache(self._trained)

    def _trained(self, compiled: bool) -> dict[str, Any]:
        out = self.folder / ("compiled" if compiled else "eager")
        figures: dict[str, Any] = json.loads(self.start(out, compile=compiled))
        return figures

    def start(self, out: Path, *arguments: str, **settings: Any) -> str:
        """Train in another process. Returns the last line of its output."""
        command = [sys.executable, "-m", "tests.gpu.training_process", self.run, str(out)]
        command += [json.dumps({**self.settings, **settings}), *arguments]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-4000:]
        return process.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`trainings(scale)`."""
    folder = tmp_path_factory.mktemp("training")
    return cache(lambda scale: Trainings(folder / scale.name, scale))


def expected_memory_gib(trainings: Trainings, tokens: float) -> float:
    """The model of a step's peak memory.

    A trained weight takes 18 bytes: itself, its gradient and two moments in float32, and a copy in 16 bit. A locked one
    takes 4. A layer keeps 34 bytes per token and channel for its backward pass (Korthikanti et al. 2022, Eq. 2, without
    the scores, which fused attention does not keep).
    """
    from transformers import AutoModel

    def parameters(tower: str) -> int:
        return sum(weight.numel() for weight in AutoModel.from_pretrained(trainings.towers[tower]).parameters())

    sizes = run_fixture.BASE
    activations = tokens * sizes["num_hidden_layers"] * 34 * sizes["hidden_size"]
    return (18 * parameters("text_tower") + 4 * parameters("image_tower") + activations) / GIB


@both(slow=True)
def test_eager_and_compiled_trainings_end_with_the_same_loss(
    scale: Scale, trainings: Any, figures: dict[str, Any]
) -> None:
    eager, compiled = (trainings(scale).trained(compiled) for compiled in (False, True))
    figures |= {name: eager[name] for name in ("precision", "samples_per_second", "peak_memory_gib", "tokens_per_step")}
    figures |= {"compiled_samples_per_second": compiled["samples_per_second"]}
    figures |= {"eager_loss": eager["loss"], "compiled_loss": compiled["loss"]}
    assert eager["steps"] == compiled["steps"] == scale.training["steps"]
    assert eager["precision"] == ("bf16" if scale.on_gpu and ask_torch().gpus else "float32")
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=TOLERANCE)


@both(slow=True)
def test_attention_is_fused(scale: Scale, trainings: Any, figures: dict[str, Any], tmp_path: Path) -> None:
    """The kernel `math` writes the scores of all pairs of tokens into memory."""
    operations = json.loads(trainings(scale).start(tmp_path, "--profile"))
    figures["attention"] = operations
    assert any(kernel in name for name in operations for kernel in FUSED), operations
    assert not any("attention_math" in name for name in operations), operations


@both(slow=True)
def test_peak_memory_is_that_of_the_model_of_it(scale: Scale, trainings: Any, figures: dict[str, Any]) -> None:
    """On the CPU the process's memory counts, of which the libraries take most."""
    trained = trainings(scale).trained(False)
    expected = expected_memory_gib(trainings(scale), trained["tokens_per_step"]) if scale.on_gpu else 0.0
    figures["expected_memory_gib"] = round(expected, 2)
    assert trained["peak_memory_gib"] > 0
    if scale.on_gpu:
        low, high = MEMORY_RATIO
        assert low <= trained["peak_memory_gib"] / expected <= high


@both(slow=True)
def test_a_killed_training_resumes_and_its_checkpoint_opens_on_the_cpu(
    scale: Scale, trainings: Any, figures: dict[str, Any], tmp_path: Path
) -> None:
    training = trainings(scale)
    expected = training.trained(False)["loss"]
    step = scale.training["steps"] // 2
    command = [sys.executable, "-c", TRAINING_SCRIPT, training.run, str(tmp_path), json.dumps(training.settings)]
    kill = {"SIGNAL_AFTER": f"0 {step}", "SIGNAL": str(int(signal.SIGKILL))}
    killed = subprocess.run(command, env={**os.environ, **kill}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    reader = [sys.executable, "-c", CHECKPOINT_DEVICES, str(tmp_path)]
    opened = subprocess.run(reader, env=without_gpu, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr[-2000:]
    saved, devices, has_gpu = json.loads(opened.stdout.splitlines()[-1])
    assert (devices, has_gpu) == (["cpu"], False) and 0 < saved <= step + 1
    resumed = json.loads(training.start(tmp_path))
    figures |= {"killed_after_step": step, "resumed_after_step": saved, "resumed_loss": resumed["loss"]}
    assert resumed["loss"] == pytest.approx(expected, rel=TOLERANCE)


@both(slow=True)
def test_two_processes_have_the_loss_and_the_gradients_of_one(
    scale: Scale, trainings: Any, figures: dict[str, Any], tmp_path: Path
) -> None:
    if scale.on_gpu and len(ask_torch().gpus) < 2:
        pytest.skip("this machine has one GPU; two processes need two")
    settings = {**trainings(scale).settings, "precision": "float32"}
    for size in (1, 2):
        finish(start(size, FIRST_STEP, trainings(scale).run, tmp_path, json.dumps({"first": settings})))
    alone, shared = (torch.load(tmp_path / f"first-{size}-0.pt", map_location="cpu") for size in (1, 2))
    assert alone.keys() == shared.keys()
    differences = {name: (shared[name] - value).norm() / (value.norm() + 1e-6) for name, value in alone.items()}
    figures["two_processes_difference"] = float(max(differences.values()))
    assert figures["two_processes_difference"] < 1e-3
