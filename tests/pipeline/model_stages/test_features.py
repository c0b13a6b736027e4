"""The features of a locked tower are computed once per shard, on Ray, and a training reads them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ray_tasks
from lotlip_data.pipeline.model_stages import features
from lotlip_data.pipeline.model_stages.features import _open_cache, compute_features
from lotlip_data.training.data.feature_cache import FeatureCache
from tests.training.run_fixture import write_run, write_towers


@pytest.fixture
def run_and_towers(tmp_path):
    return Run.at(write_run(tmp_path / "run", (5, 3, 4))), write_towers(tmp_path / "towers", dropout=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_existing_features_are_not_computed_again_and_a_training_reads_them(run_and_towers, tmp_path, caplog):
    from lotlip_data.training.config import make_config
    from lotlip_data.training.trainer import train

    run, towers = run_and_towers
    first = compute_features(run, towers["image_tower"], None, 0)
    assert (first.existing, first.computed, first.failed) == (0, 3, [])
    files = {path: path.read_bytes() for path in pathlib.Path(run.url, "features").rglob("*.npz")}
    assert [np.load(path)["features"].dtype for path in files] == [np.float16] * 3
    next(iter(files)).unlink()
    second = compute_features(run, towers["image_tower"], None, 0)
    assert (second.existing, second.computed) == (2, 1)
    assert {path: path.read_bytes() for path in files} == files
    caplog.clear()
    config = make_config(**towers, batch=4, epochs=1, warm_up=0, context_length=96)
    train(config, run.url, str(tmp_path / "t"))
    assert not any("to compute" in line for line in caplog.messages)
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.usefixtures("ray_cluster")
def test_an_unreadable_shard_fails_and_all_others_are_computed(run_and_towers):
    run, towers = run_and_towers
    _open_cache.cache_clear()
    pathlib.Path(run.shards, "train-00001.tar").write_bytes(b"no tar")
    summary = compute_features(run, towers["image_tower"], None, 0)
    assert summary.computed == 2 and len(summary.failed) == 1
    assert "shard 1" in summary.failed[0] and "train-00001.tar" in summary.failed[0]


@pytest.mark.parametrize(
    ("gpus", "cpus_per_gpu", "expected"),
    [
        (None, None, (0, 1)),  # a cluster without GPUs
        (None, 12.0, (0.5, 6)),
        (None, 2.0, (0.5, 1)),
        (None, 64.0, (0.5, 8)),
        (1, 12.0, (1, 8)),
        (0, 12.0, (0, 1)),
        (1, None, (1, 1)),  # GPUs that may come
    ],
)
def test_a_task_gets_half_a_gpu_and_the_cpus_of_its_part_where_there_are_gpus(gpus, cpus_per_gpu, expected):
    assert features.task_resources(gpus, cpus_per_gpu) == expected


def test_a_tower_computes_where_ray_assigned_its_task_and_on_the_driver_on_the_cpu(run_and_towers, monkeypatch):
    """torch sees the GPUs of a machine also in tasks without one. No real GPU is needed to see where a tower goes."""
    run, towers = run_and_towers
    places = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: places.append(str(device)) or module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(FeatureCache, "compute", lambda cache, index: places.append(cache._threads))
    assigned = {}
    monkeypatch.setattr(ray_tasks, "_assigned", lambda resource: assigned[resource])
    for assigned["GPU"], assigned["CPU"] in ((0.0, 1.0), (0.5, 6.0)):
        features._compute_shard(run.url, towers["image_tower"], None, 0)
    features._open_cache.cache_clear()
    features._open_cache(run.url, towers["image_tower"], None)
    assert places == ["cpu", 1, "cuda", 6, "cpu"]


def test_a_missing_tower_is_reported(run_and_towers):
    run, _ = run_and_towers
    with pytest.raises(UserError, match="image tower"):
        compute_features(run, "/nowhere/vit", None, 0)


def test_a_missing_dataset_is_reported_before_the_tower_is_looked_for(tmp_path):
    with pytest.raises(UserError, match="dataset"):
        compute_features(Run.at(str(tmp_path)), "nobody/no-such-tower", None, 0)


@pytest.mark.slow
def test_torchrun_trains_with_the_command_and_only_one_process_logs(run_and_towers):
    run, towers = run_and_towers
    pathlib.Path(run.manifest).write_text("name: x\nsources: [{name: a, files: [a.csv]}]\n")
    settings = {**towers, "batch": 4, "epochs": 2, "warm_up": 1, "context_length": 96}
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [*torchrun, "-m", "lotlip_data.pipeline.cli", "train", run.url, "--method", "lotlip", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("lotlip: 6 steps, loss") == 1, process.stdout
    assert pathlib.Path(run.train("lotlip"), "model", "model.safetensors").exists()
