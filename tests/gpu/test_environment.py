"""Section 1: driver, versions, shared memory, disk and caches; torch computes, and Ray counts the GPUs that it sees."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lotlip_data.pipeline.core.findings import Level
from lotlip_data.pipeline.core.gpus import ask_torch, check_gpu_driver
from lotlip_data.pipeline.core.machine import check_machine
from tests.gpu.scale import Scale, both

DISK_GIB = {"gpu": 40.0, "tiny": 0.1}
"""Free space that the suite needs: InstructBLIP's language model once, and compiled kernels."""

PRODUCT = """
import json, torch
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
left, right = torch.randn(2, 256, 256, dtype=torch.float64)
product = (left.to(device, torch.bfloat16) @ right.to(device, torch.bfloat16)).double().cpu()
error = ((product - left @ right).norm() / (left @ right).norm()).item()
print(json.dumps({"error": error, "cudnn": torch.backends.cudnn.version(), "count": torch.cuda.device_count()}))
"""

RAY_GPUS = """
import ray
from lotlip_data.pipeline.core.ray_cluster import cluster, cluster_gpus
with cluster():
    print(cluster_gpus())
"""


def answer_of(script: str) -> str:
    """The last line that a script prints, in a process of its own: this one leaves the GPU to others."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout.splitlines()[-1]


@both(slow=False)
def test_driver_versions_memory_and_disks_suffice(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    caches = {
        os.environ.get("VLLM_CACHE_ROOT", "~/.cache/vllm"): "compiled models",
        os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache"): "compiled kernels",
    }
    checks = [check_gpu_driver(), *check_machine(DISK_GIB[scale.name], caches)]
    figures["checks"] = [f"{check.subject}: {check.level.name}: {check.finding}" for check in checks]
    errors = [f"{check.subject}: {check.finding}; {check.fix}" for check in checks if check.level is Level.ERROR]
    assert errors == []


@both(slow=False)
def test_torch_multiplies_in_16_bit(scale: Scale, figures: dict[str, Any]) -> None:
    answer = json.loads(answer_of(PRODUCT))
    figures |= {"bf16_error": answer["error"], "cudnn": answer["cudnn"], "gpus": answer["count"]}
    assert answer["error"] < 0.01
    assert answer["count"] > 0 or not scale.on_gpu


@both(slow=True)
def test_ray_counts_the_gpus_that_torch_sees(scale: Scale, figures: dict[str, Any]) -> None:
    figures["ray_gpus"] = float(answer_of(RAY_GPUS))
    assert figures["ray_gpus"] == len(ask_torch().gpus)
