"""The files about the project parse, agree with each other, and name only make targets that exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)$", re.MULTILINE)


FOLDERS = ("captioners", "manifests", "pipeline", "synthetic", "training", "tests", "tools")


def read_doc(name: str) -> str:
    return (ROOT / "docs" / "development" / name).read_text(encoding="utf-8")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][\w \-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


def make_commands(path: Path) -> set[str]:
    """The targets that a file calls: `make TARGET` at the start of a line or span of code, or after `key: ` in YAML."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL))
    return set(re.findall(r"(?:^|`|: )make ([a-z][a-z-]*)", text, re.MULTILINE))


def jobs() -> dict[str, Any]:
    workflow_jobs: dict[str, Any] = load(WORKFLOW)["jobs"]
    return workflow_jobs


def steps() -> Iterator[dict[str, Any]]:
    for job in jobs().values():
        yield from job["steps"]


@pytest.mark.parametrize(
    "name",
    [
        ".github/workflows/ci.yml",
        ".github/pull_request_template.md",
        ".pre-commit-config.yaml",
        "CONTRIBUTING.md",
        "README.md",
    ],
)
def test_every_make_command_that_a_file_names_is_a_target_of_the_makefile(name: str) -> None:
    assert make_commands(ROOT / name) - make_targets() == set()


def test_contributing_names_the_commands_of_a_contributor() -> None:
    named = make_commands(ROOT / "CONTRIBUTING.md")
    assert {"setup", "check", "lint", "test", "test-slow", "docs", "docs-serve"} <= named


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_every_file_that_a_page_links_to_exists(name: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_file_and_test_that_the_claims_name_exists() -> None:
    named = re.findall(r"\b((?:tests|benchmarks)/[\w./-]+)(?:::(\w+))?", read_doc("claims.md"))
    assert len(named) > 100
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_module_that_the_architecture_names_exists() -> None:
    """A name in capitals, as in `captioners/models/NAME.py`, stands for any."""
    spans = re.findall(r"`([\w./-]+\.(?:py|js|yaml))`", read_doc("architecture.md"))
    files = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
    endings = {"/".join(Path(file).parts[start:]) for file in files for start in range(len(Path(file).parts))}
    assert len(set(spans)) > 100
    assert [span for span in spans if span not in endings and not re.search(r"\b[A-Z]+\.", span)] == []


def test_the_workflow_tests_every_python_version_that_the_package_declares() -> None:
    prefix = "Programming Language :: Python :: 3."
    declared = [f"3.{name.removeprefix(prefix)}" for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert jobs()["test"]["strategy"]["matrix"]["python"] == declared
    first, last = (int(version.removeprefix("3.")) for version in (declared[0], declared[-1]))
    assert PROJECT["requires-python"] == f">=3.{first},<3.{last + 1}"


def test_the_workflow_lints_tests_and_builds_the_docs_and_the_wheel_with_read_permission_only() -> None:
    workflow = load(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in jobs().values())
    assert set(jobs()) == {"lint", "test", "docs", "wheel"}
    assert {"lint", "test", "docs"} <= make_commands(WORKFLOW)
    assert "cancel-in-progress" in workflow["concurrency"]
    assert all("timeout-minutes" in job for job in jobs().values())


def test_every_action_of_the_workflow_is_pinned_to_a_major_version() -> None:
    actions = [step["uses"] for step in steps() if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    pins = {pin["name"]: pin["version"] for pin in PIN.finditer((ROOT / "constraints" / "cpu.txt").read_text())}
    repositories = {repository["repo"]: repository for repository in load(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert repositories["https://github.com/astral-sh/ruff-pre-commit"]["rev"] == f"v{pins['ruff']}"
    assert all("rev" in repository for name, repository in repositories.items() if name != "local")


def test_issue_forms_have_a_name_and_fields_with_distinct_ids() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert {path.stem for path in forms} == {"bug_report", "feature_request"}
    for path in forms:
        form = load(path)
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert form["name"] and form["description"] and len(set(ids)) == len(ids)
    assert load(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert str(citation["cff-version"]) == "1.2.0"
    assert citation["message"] and citation["authors"]
    of_the_package = {"title": PROJECT["name"], "version": PROJECT["version"], "license": PROJECT["license"]}
    assert {name: citation[name] for name in of_the_package} == of_the_package
    (paper,) = citation["references"]
    assert paper["title"] == "LoTLIP: Improving Language-Image Pre-training for Long Text Understanding"
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert (names[0], names[-1], len(names)) == ("Wei Wu", "Zheng-Jun Zha", 10)
    assert paper["year"] == 2024
