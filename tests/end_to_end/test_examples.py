"""The example files fit the code: manifests load, commands parse, resources suffice, numbers follow their formulas."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lotlip_data.captioners import gpu_memory, sizing
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.pipeline.model_stages.train import check_towers
from lotlip_data.pipeline.recaptioning.config import CaptionerJob, resolve_captioners
from lotlip_data.pipeline.recaptioning.job_checks import check_planned, check_prompts
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import ROOT
from tests.support.ports import can_be_bound, free_ports

EXAMPLES = ROOT / "examples"
GUIDES = EXAMPLES.parent / "docs" / "guides"
SIZING = [sys.executable, "-m", "lotlip_data.captioners.gpu_memory"]
SLURM = EXAMPLES / "recaption.slurm"


@pytest.fixture(scope="module")
def big_manifest() -> tuple[Manifest, list[CaptionerJob]]:
    manifest = load(str(EXAMPLES / "8x80gb.yaml"))
    return manifest, resolve_captioners(manifest.captioners)


def test_every_example_manifest_loads_with_its_captioners() -> None:
    captioners = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        if "apiVersion" not in yaml.safe_load(path.read_text()):
            manifest = load(str(path))
            jobs = resolve_captioners(manifest.captioners) if manifest.captioners else []
            captioners[path.name] = [*(job.config.name for job in jobs), *manifest.imported_names]
    assert captioners == {
        "100m-recaptioned.yaml": ["instructblip", "llava", "sharegpt4v"],
        "8x80gb.yaml": ["llava", "sharegpt4v", "instructblip"],
        "endpoint.yaml": ["qwen3-vl"],
        "qwen3-vl.yaml": ["qwen"],
    }


def test_the_manifest_of_several_texts_can_run_with_vllm_and_keeps_eight_gpus_busy() -> None:
    manifest = load(str(EXAMPLES / "qwen3-vl.yaml"))
    (job,) = resolve_captioners(manifest.captioners)
    assert [text.name for text in job.config.texts] == ["qwen_long", "qwen_known", "qwen_facts"]
    assert list(check_prompts(job.config.texts)) == [] == list(check_planned(job, 8))
    assert manifest.sample == 8 * manifest.samples_per_shard
    assert list(check_towers(manifest.train)) == []


def test_the_guide_has_what_the_engines_of_the_big_manifest_choose_on_its_gpus(
    big_manifest: tuple[Manifest, list[CaptionerJob]],
) -> None:
    guide, gpu = (GUIDES / "gpu-sizing.md").read_text(), sizing.Gpu("NVIDIA H100 80GB HBM3", 84_930_000_000, (9, 0))
    for job in big_manifest[1]:
        options = job.pool.engine_options
        assert options.max_num_seqs is None and options.batch_size is None
        sizes, share = gpu_memory.PUBLISHED_SIZES[job.config.kind], sizing.Share(options.gpu_memory_utilization)
        defaults = sizing.engine_defaults(gpu, sizes, sizing.Precision(own_dtype="float16"), share)
        assert f"{defaults.max_num_seqs} for {sizing_name(job.config.kind)}" in guide


def sizing_name(kind: str) -> str:
    """The guide's name of a kind."""
    return "InstructBLIP" if kind == "instructblip" else "LLaVA and ShareGPT4V"


def test_the_guides_table_of_gpus_is_what_engines_choose() -> None:
    """Each row: memory in GiB as torch reports it, then captions at a time of LLaVA, LLaVA in FP8 and InstructBLIP."""
    rows = re.findall(
        r"^\| [^|]+ \| ([\d.]+) \| ([\d,]+) \| ([\d,]+|–) \| ([\d,]+) \|$",
        (GUIDES / "gpu-sizing.md").read_text(),
        re.MULTILINE,
    )
    plain = sizing.Precision(own_dtype="float16")
    fp8 = sizing.Precision("auto", "float16", sizing.FP8_PER_CHANNEL, "fp8_hopper")
    for gib, *expected in rows:
        gpu = sizing.Gpu("", int(float(gib) * 2**30), (8, 0) if expected[1] == "–" else (9, 0))
        cases = [(sizing.LLAVA, plain), (sizing.LLAVA, fp8), (sizing.INSTRUCTBLIP, plain)]
        for (model, precision), number in zip(cases, expected, strict=True):
            if number != "–":
                chosen = sizing.engine_defaults(gpu, model, precision, sizing.Share()).max_num_seqs
                assert f"{chosen:,}" == number, (gib, model)
    assert len(rows) == 4


def test_trainings_of_the_big_manifest_are_valid(big_manifest: tuple[Manifest, list[CaptionerJob]]) -> None:
    from lotlip_data.training.config import make_config

    for training in big_manifest[0].train:
        assert training.ray and make_config(**training.settings).batch % training.ray.workers == 0


@pytest.mark.parametrize(("gib", "utilization"), [(79.1, 0.9), (39.4, 0.9), (79.1, 0.5), (15.8, 0.9)])
def test_max_sequences_fit_in_gpu_memory_and_16_more_do_not(gib: float, utilization: float) -> None:
    """In bytes: weights, working memory and the cache of full-length captions stay within the GPU's share."""
    for model in gpu_memory.PUBLISHED_SIZES.values():

        def used_bytes(captions: int, model: Any = model) -> float:
            cache = captions * model.sequence_tokens() * model.kv_bytes_per_token
            return 2 * model.parameters + cache + sizing.WORKING_MEMORY_GIB * 2**30

        count = sizing.max_sequences(model, gib, utilization)
        assert count == 0 or used_bytes(count) <= utilization * gib * 2**30
        assert used_bytes(count + 16) > utilization * gib * 2**30


def test_published_sizes_are_those_of_the_architectures() -> None:
    """transformers' classes on the meta device, with the published vocabularies. The cache takes 0.5 MiB per token."""
    import torch
    from transformers import (
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(LlavaConfig(text_config=LlamaConfig(vocab_size=32_064)))
        instructblip = InstructBlipForConditionalGeneration(
            InstructBlipConfig(text_config=LlamaConfig(vocab_size=32_001))
        )
    for model, sizes in ((llava, sizing.LLAVA), (instructblip, sizing.INSTRUCTBLIP)):
        assert sum(weights.numel() for weights in model.parameters()) == sizes.parameters
        text = model.config.text_config
        shape = (text.num_hidden_layers, text.num_key_value_heads, text.hidden_size // text.num_attention_heads)
        assert shape == (sizes.layers, sizes.kv_heads, sizes.head_size)
        assert sizes.kv_bytes_per_token == 2**19


def test_the_guide_shows_the_output_of_the_script() -> None:
    printed = subprocess.run(SIZING, capture_output=True, text=True, check=True)
    guide = (GUIDES / "gpu-sizing.md").read_text()
    assert printed.stdout in guide
    llava, cache_tokens = sizing.LLAVA, sizing.kv_cache_tokens(sizing.LLAVA, 79.1, 0.9)
    used_gib, cache_gib = 128 * llava.sequence_tokens() / 2048, cache_tokens / 2048
    assert f"128 × {llava.sequence_tokens()} tokens × 0.5 MiB = {used_gib:.1f} GiB of {cache_gib:.1f}." in guide
    assert f"With captions of 256 tokens each, {cache_tokens // llava.sequence_tokens(256)} fit" in guide
    assert f"{sizing.INSTRUCTBLIP.sequence_tokens()} tokens per caption instead of {llava.sequence_tokens()}" in guide


def test_the_guides_name_every_example_and_no_missing_one() -> None:
    names = set(re.findall(r"\bexamples/[\w.-]*\w", "".join(path.read_text() for path in GUIDES.glob("*.md"))))
    assert names == {f"examples/{path.name}" for path in EXAMPLES.iterdir() if path.is_file()}


def test_the_kuberay_job_can_write_to_the_caches_of_its_node() -> None:
    """A hostPath folder belongs to root, and Ray's image runs as another user."""
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    template = group["template"]["spec"]
    (worker,), (init,) = template["containers"], template["initContainers"]
    (cache,) = [volume["name"] for volume in template["volumes"] if "hostPath" in volume]
    (mount,) = [mount["mountPath"] for mount in worker["volumeMounts"] if mount["name"] == cache]
    assert init["command"] == ["chown", "1000:1000", mount] and init["securityContext"] == {"runAsUser": 0}
    assert init["volumeMounts"] == [{"name": cache, "mountPath": mount}] and init["image"] == worker["image"]
    folders = {entry["name"]: entry["value"] for entry in worker["env"]}
    assert folders.keys() == {"HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"}
    assert all(folder.startswith(f"{mount}/") for folder in folders.values())


def test_the_kuberay_job_runs_a_valid_command_on_nodes_that_fit_its_actors(
    big_manifest: tuple[Manifest, list[CaptionerJob]],
) -> None:
    import typer

    from lotlip_data.pipeline.cli.main import app

    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "lotlip-data"
    group: Any = typer.main.get_command(app)
    group.commands[command].make_context(command, arguments)  # raises if an argument or option is wrong

    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for pod in pods for container in pod["template"]["spec"]["containers"]}
    assert len(images) == 1
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    template = group["template"]["spec"]
    (worker,) = template["containers"]
    assert {mount["name"] for mount in worker["volumeMounts"]} == {volume["name"] for volume in template["volumes"]}
    assert worker["resources"]["limits"] == worker["resources"]["requests"]  # a GPU cannot be overcommitted
    gpus, cpus = (float(worker["resources"]["limits"][name]) for name in ("nvidia.com/gpu", "cpu"))
    for captioner in big_manifest[1]:
        pool = captioner.pool
        assert pool.num_gpus and gpus / pool.num_gpus * pool.num_cpus <= cpus
        assert pool.max_actors == gpus / pool.num_gpus * group["maxReplicas"]


def test_ray_versions_are_the_installed_one() -> None:
    import ray

    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-", (EXAMPLES / "Dockerfile").read_text(), re.M)
    assert base and base[1] == job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


STANDINS = {
    "scontrol": "#!/bin/sh\nprintf 'localhost\\nlocalhost\\n'\n",
    # Runs the command on this machine: one Ray node per step.
    "srun": '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ends", ["done", "wrong arguments", "out of time"])
def test_the_slurm_script_starts_a_cluster_recaptions_and_stops_it(ends: str, tmp_path: Path) -> None:
    """With stand-ins for Slurm's two commands, and two Ray nodes on this machine. No process is left running.

    The exit code is that of the command: 0, 2 for a missing run, 130 after the signal before the time limit.
    """
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    number = str(os.getpid() * 6_000 + job_number_with_free_ports())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{environment['PATH']}"}
    environment |= {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    shards, images = (200, 16) if ends == "out of time" else (2, 4)
    run = fake_run.make(tmp_path / "run", shards, images, writers=(), pixels=96).run
    run_folder = str(tmp_path / "nothing") if ends == "wrong arguments" else run.url
    log = tmp_path / "log"
    command = ["bash", str(SLURM), run_folder, "--captioner", "tiny-instructblip"]
    with log.open("w") as output:
        # A background job of a shell ignores SIGINT, and its children inherit that.
        restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        job = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True, preexec_fn=restore_sigint
        )
    try:
        if ends == "out of time":
            deadline = time.monotonic() + 500
            while " of 3,200 images" not in log.read_text():
                assert time.monotonic() < deadline and job.poll() is None, log.read_text()
                time.sleep(0.1)
            job.send_signal(signal.SIGINT)
        code = job.wait(600)
    finally:
        left_over = _processes_of(f"ray-{number}")
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    output_text = log.read_text()
    assert code == {"done": 0, "wrong arguments": 2, "out of time": 130}[ends], output_text
    if ends == "done":
        assert len(list(Path(run.captioner("tiny-instructblip")).glob("0000?.parquet"))) == 2
    elif ends == "wrong arguments":
        assert "no run here" in output_text
    else:
        assert "run the same command again to resume" in output_text
    assert left_over == []
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)


def job_number_with_free_ports() -> int:
    """A job number from which the script derives two free ports: 20,000 plus twice the number, and the next one."""
    even = (port for port in free_ports(1_000) if port % 2 == 0 and port < 32_000)
    return next((port - 20_000) // 2 for port in even if can_be_bound(port + 1))


def _processes_of(folder: str) -> list[str]:
    """Command lines of the processes of the Ray cluster with the folder /tmp/`folder`. Waits a minute for their end."""
    import psutil

    for _ in range(120):
        lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        if not (left_over := [line for line in lines if f"/tmp/{folder}/" in line]):
            break
        time.sleep(0.5)
    return left_over
