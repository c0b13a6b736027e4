"""The container image, the Kubernetes job and the Slurm script, as far as they can be checked without their systems.

There is no Docker here: each RUN instruction is executed in a fresh virtual environment, with pip in its dry mode,
since the wheels take gigabytes. The base image, COPY, and the start of a container are not executed.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from tests.support import crd, dockerfile, wheels
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
INSTRUCTIONS = dockerfile.parse((EXAMPLES / "Dockerfile").read_text())
SLURM = EXAMPLES / "recaption.slurm"
SCRIPTS = (SLURM, ROOT / ".ci" / "run", *sorted(ROOT.glob("tools/*.sh")), *sorted(ROOT.glob("benchmarks/*.sh")))

KUBERNETES_VERSIONS = ("1.28.0", "1.31.0", "1.34.0")
RAY_JOB_FIELDS = {
    "spec": {
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
        *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
        *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
        *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
    },
    "spec.rayClusterSpec": {
        *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
        *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs"),
    },
}
"""Fields of KubeRay 1.5.1, the oldest version that the example supports. `python -m tests.support.crd` checks the whole
file against a published schema: it was valid for 1.5.1, 1.6.2 and 1.7.0 on 2026-11-29."""

SBATCH_OPTIONS = {
    *("account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error"),
    *("exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "licenses"),
    *("mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "partition", "qos", "requeue", "no-requeue", "reservation", "signal", "time", "time-min"),
}
"""Options of sbatch (https://slurm.schedmd.com/sbatch.html)."""


def of(name: str) -> list[str]:
    """The arguments of all instructions of a name."""
    return [instruction.arguments for instruction in INSTRUCTIONS if instruction.name == name]


def test_the_image_does_not_run_as_root_and_starts_with_a_command_of_the_project() -> None:
    import typer

    from lotlip_data.pipeline.cli.main import app

    assert of("USER")[-1] == "ray"
    assert "ENTRYPOINT" not in {instruction.name for instruction in INSTRUCTIONS}, "KubeRay starts `ray start`"
    program, command, *arguments = json.loads(of("CMD")[-1])
    group: Any = typer.main.get_command(app)
    assert program == "lotlip-data"
    group.commands[command].make_context(command, arguments)


def test_the_caches_of_the_image_are_folders_that_its_user_has_made_and_those_of_the_kubernetes_job() -> None:
    """Docker creates a folder that does not exist as root when it mounts a volume there."""
    variables = dockerfile.environment(INSTRUCTIONS)
    caches = {name: folder for name, folder in variables.items() if folder.startswith("/")}
    assert caches.keys() == {"HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"}
    made = {word for command in of("RUN") for word in shlex.split(command) if "mkdir" in command}
    assert set(caches.values()) <= made
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert {entry["name"]: entry["value"] for entry in worker["env"]} == caches


def test_the_image_is_built_from_the_wheel_that_its_comment_builds() -> None:
    text = (EXAMPLES / "Dockerfile").read_text()
    source, target = of("COPY")[0].split()[-2:]
    version = metadata.version("lotlip-data")
    assert Path(f"dist/lotlip_data-{version}-py3-none-any.whl").match(source) and target == "/tmp/"
    assert "pip wheel --no-deps -w dist ." in text and f"lotlip-data:{version}" in text


def test_a_continued_run_instruction_is_one_command(tmp_path: Path) -> None:
    text = "FROM x\n# a comment\nRUN echo a \\\n    # inside\n    && cat /tmp/b\nENV A=1 B=/c\n"
    instructions = dockerfile.parse(text)
    assert instructions[1] == ("RUN", "echo a && cat /tmp/b")
    assert dockerfile.environment(instructions) == {"A": "1", "B": "/c"}
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "b").write_text("from the folder")
    assert dockerfile.run("cat /tmp/b", tmp_path, {"PATH": "/bin:/usr/bin"}).stdout == "from the folder"


def registry_settings() -> dict[str, str]:
    """How this machine reaches its package registry: proxies, certificates, and pip's own settings."""
    names = re.compile(r"PIP_\w+|SSL_\w+|\w*_CA_BUNDLE|(?:https?|no|all)_proxy", re.IGNORECASE)
    settings = {name: value for name, value in os.environ.items() if names.fullmatch(name)}
    own = Path.home() / ".config" / "pip" / "pip.conf"
    return settings if not own.exists() else {"PIP_CONFIG_FILE": str(own), **settings}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_run_instruction_succeeds_in_a_fresh_environment(tmp_path: Path) -> None:
    """What pip would install has the versions that are tested, and keeps the base image's Ray.

    The wheel itself is then installed for the instructions that call the program. Its dependencies are those of this
    environment.
    """
    project, environment = tmp_path / "project", tmp_path / "venv"
    for folder in ("tmp", "home/ray", "project"):
        (tmp_path / folder).mkdir(parents=True)
    wheels.copy_project(project)
    wheels.build(project, tmp_path / "tmp")
    venv.create(environment, with_pip=True)
    variables = {**registry_settings(), "PATH": dockerfile.path_with(environment / "bin")}
    planned = ""
    for command in of("RUN"):
        if command.startswith("pip install"):
            answer = dockerfile.run(command, tmp_path, variables | {"PIP_DRY_RUN": "1"})
            planned += answer.stdout
            (wheel,) = (tmp_path / "tmp").glob("*.whl")
            pip = [str(environment / "bin" / "pip"), "install", "-q", "--no-deps", "--no-index", str(wheel)]
            subprocess.run(pip, check=True)
            # Unlike PYTHONPATH, it comes after the standard library, of which a package here is an old copy.
            (library,) = environment.glob("lib/python*/site-packages")
            (library / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
        else:
            answer = dockerfile.run(command, tmp_path, variables)
        assert answer.returncode == 0, f"RUN {command}\n{answer.stdout[-1500:]}{answer.stderr[-3000:]}"
    assert not list((tmp_path / "tmp").glob("*.whl")) and (tmp_path / "home/ray/.cache/vllm").is_dir()
    would_install = planned.rpartition("Would install ")[2]
    requirements = [Requirement(line) for line in metadata.requires("lotlip-data") or ()]
    base = re.search(r"ray:([\d.]+)-", of("FROM")[0])
    for name in ("vllm", "torch", "transformers", "ray"):
        version = re.search(rf"(?:^|\s){name}-(\d[\w.+]*)", would_install)
        assert version, f"{name} would not be installed: {would_install[:2000]}"
        needed = [entry.specifier for entry in requirements if entry.name == name and "dev" not in str(entry.marker)]
        assert all(specifier.contains(version[1], prereleases=True) for specifier in needed), (name, version[1])
        if name == "ray":
            assert base and version[1] == base[1]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    return content


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_pods_of_the_ray_job_are_valid_for_kubernetes(job: dict[str, Any], version: str) -> None:
    """With unknown fields refused."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_a_misspelt_field_of_a_pod_is_found(job: dict[str, Any]) -> None:
    spec = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {**spec, "toleration": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES_VERSIONS[0], strict=True)


def test_the_ray_job_has_only_fields_of_the_oldest_kuberay_that_it_names(job: dict[str, Any]) -> None:
    assert "KubeRay 1.5.1 or newer" in (EXAMPLES / "rayjob.yaml").read_text()
    for path, known in RAY_JOB_FIELDS.items():
        section = job
        for name in path.split("."):
            section = section[name]
        assert section.keys() <= known, path


def test_a_schema_of_kuberay_finds_unknown_fields_and_wrong_types() -> None:
    """With a small schema of the same form."""
    amount = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}], "pattern": "x"}
    fields = {"replicas": {"type": "integer", "format": "int32"}, "cpu": amount}
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}
    schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    versions = [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]
    definition = {"metadata": {"name": "jobs"}, "spec": {"names": {"kind": "RayJob"}, "versions": versions}}
    valid = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "x"},
        "spec": {"replicas": 1, "cpu": "8"},
    }
    assert list(crd.errors(valid, definition)) == []
    (unknown,) = crd.errors(valid | {"spec": {"replica": 1}}, definition)
    (wrong,) = crd.errors(valid | {"spec": {"replicas": "one"}}, definition)
    (other,) = crd.errors(valid | {"apiVersion": "ray.io/v1alpha1"}, definition)
    assert "replica" in unknown and wrong.startswith("spec.replicas: ") and "jobs" in other


def test_the_slurm_script_has_only_options_of_sbatch_before_its_first_command() -> None:
    lines = SLURM.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options == [line for line in lines[:first_command] if line.startswith("#SBATCH")], "sbatch reads no others"
    names = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in options]
    assert all(names) and {match[1] for match in names if match} <= SBATCH_OPTIONS
    values = {match[1]: match[2] for match in names if match}
    assert re.fullmatch(r"(\d+-)?\d+:\d{2}:\d{2}", values["time"])
    assert re.fullmatch(r"B:[A-Z]+@\d+", values["signal"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shell_scripts_have_no_known_mistake(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
    answer = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
