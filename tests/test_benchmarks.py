"""Every benchmark runs, small, and its last line has the keys that benchmarks/README.md lists."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lotlip_data.synthetic.scenes import render, sample_scene
from tests.support.paths import ROOT

KEYS = {
    "download": {"ours_vs_img2dataset", "cpu_ours_vs_img2dataset", "ours", "img2dataset"},
    "recaption": {
        *("ours_vs_bare_vllm", "ours_vs_ray_data_llm", "instructblip_vs_generate"),
        *("weight", "tiny", "heavy"),
    },
    "train": {
        *("pixels_3", "cached_3", "pixels_1", "cached_1"),
        *("loss_softmax", "loss_smoothed", "loss_sigmoid"),
        *("longclip", "debias", "multi_positive"),
    },
    "loader": {"ours_vs_webdataset"},
    "cluster": {"driver_share", "driver_rss_growth_mb", "shards_per_second", "units_per_second", "measured_share"},
    "one_pass": {"one_pass_vs_passes", "ratios", "pairs"},
    "streamed": {"streamed_vs_longest", "staged_vs_longest", "streamed_seconds", "staged_seconds", "stages", "longest"},
    "existing": {"existing_vs_ours", "pair"},
    "scale": {"stages", "growth", "peak_mib", "peak_growth", "bounds", "extrapolated_core_hours_of_100M"},
}
RAN = {"download": "ours_vs_img2dataset", "recaption": "ours_vs_bare_vllm", "train": "pixels_3"}
RAN |= {"loader": "ours_vs_webdataset", "scale": "peak_growth", "cluster": "driver_share"}
RAN |= {"one_pass": "one_pass_vs_passes", "existing": "existing_vs_ours", "streamed": "streamed_vs_longest"}
MODULES = {"download_web", "images", "heavy_models", "recaption_jobs", "train_losses", "train_methods"}
"""What the scripts import."""


def test_every_benchmark_has_a_smoke_test() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "--smoke" in path.read_text()}
    assert scripts == set(KEYS) == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - MODULES


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_a_benchmark_runs_and_prints_its_figures(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smoke"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    figures = json.loads(process.stdout.splitlines()[-1])
    assert KEYS[name] <= set(figures)
    assert figures[RAN[name]] > 0
    if name == "cluster":
        assert all(figures[key] <= bound for key, bound in figures["bounds"].items()), figures


@pytest.mark.slow
def test_the_download_from_a_web_like_server_prints_its_figures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/download.py"), "--web", "--smoke", "--cores", "1"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    figures = json.loads(process.stdout.splitlines()[-1])
    assert figures["ours_vs_img2dataset_web"] > 0
    assert figures["cpu_ours_vs_img2dataset_web"] > 0
    assert figures["processes"]["1"]["ours"]["stored"] >= figures["processes"]["1"]["img2dataset"]["stored"] > 10


@pytest.mark.slow
def test_the_widened_instructblip_writes_the_captions_of_the_tiny_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoProcessor, InstructBlipForConditionalGeneration

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from heavy_models import write_instructblip

    tiny, prompt = str(ROOT / "synthetic/checkpoints/tiny-instructblip"), "Describe the image in detail."
    images = [render(sample_scene(seed), 96) for seed in (1, 2)]
    inputs = AutoProcessor.from_pretrained(tiny, backend="pil")(images, [prompt] * 2, return_tensors="pt")
    tokens = []
    for folder in (tiny, write_instructblip(tmp_path / "wide", "float32")):
        model = InstructBlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        tokens.append(model.generate(**inputs, max_new_tokens=24, do_sample=False).tolist())
    assert tokens[0] == tokens[1]
    assert 100e6 < sum(weights.numel() for weights in model.parameters()) < 200e6
