"""Every benchmark runs, small, and its last line has the keys that benchmarks/README.md lists."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

KEYS = {
    "download": {"ours_vs_img2dataset", "cpu_ours_vs_img2dataset", "ours", "img2dataset"},
    "recaption": {
        *("ours_vs_bare_vllm", "ours_vs_ray_data_llm", "ours_vs_ray_data_llm_tuned", "ours_vs_generate"),
        *("instructblip_vs_generate", "pairs"),
    },
    "train": {"pixels_3", "cached_3", "pixels_1", "cached_1"},
    "loader": {"ours_vs_webdataset"},
    "cluster": {"driver_share", "driver_rss_growth_mb", "shards_per_second", "units_per_second", "measured_share"},
    "one_pass": {"one_pass_vs_passes", "ratios", "pairs"},
    "scale": {"stages", "growth", "peak_mib", "peak_growth", "bounds", "extrapolated_core_hours_of_100M"},
}
RAN = {"download": "ours_vs_img2dataset", "recaption": "ours_vs_bare_vllm", "train": "pixels_3"}
RAN |= {"loader": "ours_vs_webdataset", "scale": "peak_growth", "cluster": "driver_share"}
RAN |= {"one_pass": "one_pass_vs_passes"}


def test_every_benchmark_has_a_smoke_test() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "--smoke" in path.read_text()}
    assert scripts == set(KEYS) == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"images"}


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
