"""The suite itself: when it runs, is skipped or fails, what it records, and the models that it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.engines.preprocessing import Preprocessor
from lotlip_data.captioners.gpu_memory import read_model_sizes
from lotlip_data.captioners.registry import get_kind
from lotlip_data.captioners.sizing import INSTRUCTBLIP, LLAVA
from lotlip_data.manifests.checkpoints.weights import read_weights
from lotlip_data.pipeline.core.gpus import InstalledGpus, TorchGpus
from tests.gpu import report, shapes
from tests.gpu.availability import availability
from tests.gpu.engine_process import Round
from tests.gpu.results import SECTIONS, Results
from tests.gpu.scale import GPU, TINY
from tests.gpu.test_llava import capability, fp8_skip_reason
from tests.gpu.test_real_weights import check_captions
from tests.gpu.test_truth import jobs_of, share_of_equal
from tests.support.paths import ROOT

NONE, ONE = InstalledGpus(0, False, ""), InstalledGpus(1, True, "535.104.05")
H100 = TorchGpus("2.14.0", "13.0", [("NVIDIA H100 80GB HBM3", 85_000_000_000)])
BLIND = TorchGpus("2.14.0", "13.0")
CPU_BUILD = TorchGpus("2.13.0+cpu", None)


@pytest.mark.parametrize(
    ("installed", "listed", "seen", "action", "words"),
    [
        (NONE, [], BLIND, "skip", "no GPU"),
        (ONE, ["NVIDIA H100 80GB HBM3"], H100, "run", "H100"),
        (ONE, [], H100, "run", "H100"),
        (ONE, ["NVIDIA H100 80GB HBM3"], BLIND, "fail", "580.65.06"),
        (NONE, ["NVIDIA H100 80GB HBM3"], BLIND, "fail", "torch sees no GPU"),
        (ONE, ["NVIDIA H100 80GB HBM3"], CPU_BUILD, "fail", "built without CUDA"),
    ],
)
def test_the_suite_runs_is_skipped_or_fails_with_the_reason(
    installed: InstalledGpus, listed: list[str], seen: TorchGpus, action: str, words: str
) -> None:
    answer = availability(installed, listed, seen)
    assert answer.action == action and words in answer.reason


@pytest.mark.slow
def test_a_machine_without_a_gpu_skips_every_gpu_test_and_writes_the_results(tmp_path: Path) -> None:
    """As `make test-gpu` does there. Where there is a GPU, another test of this kind would take minutes."""
    if availability().action != "skip":
        pytest.skip("this machine has a GPU")
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    process = subprocess.run(command, cwd=ROOT, env=_environment(file), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-3000:]
    results = json.loads(file.read_text())
    assert (results["passed"], results["failed"]) == (0, 0) and results["skipped"] >= 20
    assert all("no GPU" in test["reason"] for test in results["tests"].values())
    modules = [name.partition("::")[0].removeprefix("test_") for name in results["tests"]]
    assert list(dict.fromkeys(modules)) == list(SECTIONS), "every section, in its order"
    assert str(file.name) in process.stdout and results["environment"]["packages"]["torch"] == torch.__version__


def _environment(file: Path) -> dict[str, str]:
    import os

    return {**os.environ, "GPU_RESULTS": str(file)}


def test_the_worst_phase_of_a_test_is_its_outcome_and_its_times_add_up() -> None:
    results = Results()
    for phase, outcome in enumerate(("passed", "failed", "passed")):
        results.add_test("a", outcome, 1.0, f"reason {phase}")
    results.add_test("b", "skipped", 0.1, "no GPU")
    results.add_test("b", "passed", 0.1)
    assert results.tests["a"] == {"outcome": "failed", "seconds": 3.0, "reason": "reason 1"}
    assert results.tests["b"] == {"outcome": "skipped", "seconds": 0.2, "reason": "no GPU"}


def test_results_become_table_rows_of_the_guide() -> None:
    results = Results()
    results.section("llava").update(images_per_second=24.2, cache_tokens=105_000, warm_start_seconds=61.0)
    results.section("llava").update(fp8_images_per_second=45.1, fp8_cache_tokens=220_000, fp8_start_seconds=80.0)
    results.section("training").update(precision="bf16", samples_per_second=900.0, peak_memory_gib=11.3)
    content: dict[str, Any] = json.loads(json.dumps(results.to_dict()))
    content["environment"] |= {"gpus": ["NVIDIA H100 80GB HBM3, 81559 MiB, 580.65.06, 9.0"], "driver": "580.65.06"}
    rows = report.rows(content)
    assert [row.split(" | ")[2:7] for row in rows[:2]] == [
        ["LLaVA-1.5-7B", "16 bit", "24", "105,000", "61"],
        ["LLaVA-1.5-7B", "FP8", "45", "220,000", "80"],
    ]
    assert rows[2].startswith("training: | NVIDIA H100 80GB HBM3 | bf16 | 900 | – | 11.3 | measured ")
    guide = (ROOT / "docs" / "guides" / "gpu-sizing.md").read_text()
    for row, header in zip((rows[0], rows[2]), ("| GPU | captioner |", "| GPU | precision |"), strict=True):
        (line,) = [line for line in guide.splitlines() if line.startswith(header)]
        assert line.count("|") == row.count("|"), "the row has the columns of its table"
    with pytest.raises(ValueError, match="schema_version"):
        report.rows(content | {"schema_version": 0})


def test_figures_and_the_environment_are_json_and_name_no_host() -> None:
    import platform

    content = json.dumps(Results().to_dict())
    assert platform.node() not in content and set(json.loads(content)["sections"]) == set(SECTIONS)


def test_llava_at_7b_shapes_has_the_published_sizes_and_a_text_for_every_token(tmp_path: Path) -> None:
    config = CaptionerConfig(name="x", kind="llava", model=str(shapes.write_llava(tmp_path)))
    assert read_model_sizes(config) == LLAVA
    preprocessor = Preprocessor(get_kind("llava"), config)
    assert 576 < preprocessor.first.length <= 576 + LLAVA.prompt_tokens
    tokens = [token for token in range(4, 32_064) if token not in preprocessor.stop_ids][::977]
    assert preprocessor.decode(tokens, config).tokens == len(tokens)


def test_instructblip_at_7b_shapes_is_a_sparse_file_with_the_published_sizes(tmp_path: Path) -> None:
    folder = shapes.write_instructblip(tmp_path)
    config = CaptionerConfig(name="x", kind="instructblip", model=str(folder))
    file = folder / "model.safetensors"
    assert file.stat().st_size > 15_000_000_000 > 1_000_000 > 512 * file.stat().st_blocks
    sizes = read_model_sizes(config)
    assert sizes and sizes.image_tokens == 32
    assert sizes.parameters == pytest.approx(INSTRUCTBLIP.parameters, rel=1e-3)  # the vocabulary is padded by 63 tokens
    weights = read_weights(file)
    assert weights["query_tokens"].shape == (1, 32, 768) and not weights["query_tokens"].any()
    assert Preprocessor(get_kind("instructblip"), config).first.length <= 32 + INSTRUCTBLIP.prompt_tokens


def test_fp8_is_skipped_on_gpus_that_cannot_multiply_in_it() -> None:
    assert capability(["NVIDIA L4, 23034 MiB, 580.65.06, 8.9"]) == (8, 9)
    assert "8.9" in fp8_skip_reason((8, 0)) and fp8_skip_reason((8, 9)) == fp8_skip_reason((9, 0)) == ""


def test_both_scales_compare_the_same_engines_except_for_the_second_runner() -> None:
    on_gpu, on_cpu = jobs_of(GPU), jobs_of(TINY)
    assert on_gpu.keys() - on_cpu.keys() == {"llava V2", "instructblip V2"} and on_cpu.keys() < on_gpu.keys()
    assert (
        on_gpu["llava V2"][1]["VLLM_USE_V2_MODEL_RUNNER"] == "1"
        and on_gpu["llava V1"][1]["NVIDIA_TF32_OVERRIDE"] == "0"
    )


def test_an_image_without_a_text_is_not_equal_to_another() -> None:
    assert share_of_equal(["a", None, "b", "c"], ["a", None, "b", "x"]) == 0.5


@pytest.mark.parametrize("fault", ["length", "flag", "short", "same", None])
def test_captions_that_are_not_sound_fail(fault: str | None) -> None:
    count = 64
    entry = Round(
        window=8,
        seconds=2.0,
        cpu_seconds=1.0,
        texts=["same" if fault == "same" else f"text {number}" for number in range(count)],
        tokens=[20 if fault == "short" else 120] * count,
        finish_reasons=["length" if fault == "length" and number < 4 else "stop" for number in range(count)],
        flags=[["truncated"] if fault == "flag" and number < 4 else [] for number in range(count)],
    )
    if fault is None:
        assert check_captions(entry, (90, 200))["images_per_second"] == 32
    else:
        with pytest.raises(AssertionError):
            check_captions(entry, (90, 200))
