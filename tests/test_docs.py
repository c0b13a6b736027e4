"""The generated pages of the documentation say all that the code knows, and the strict build has no warning."""

import html
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from lotlip_data.manifests.manifest import Manifest
from tests.support.paths import ROOT
from tests.support.tools import load_tool


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load_tool("docs_hooks")


def commands(app: Any, path: str = "lotlip-data") -> Iterator[tuple[str, Any]]:
    """The callback of each command that a Typer app registers, read without the page's own walk."""
    for command in app.registered_commands:
        yield f"{path} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for group in app.registered_groups:
        if group.hidden is not True:
            yield from commands(group.typer_instance, f"{path} {group.name}")


def section(page: str, heading: str) -> str:
    return page.split(f"\n## {heading} ", 1)[1].split("\n## ", 1)[0]


def test_the_page_of_the_command_line_has_every_command_and_every_option(hooks: ModuleType) -> None:
    page = hooks.cli_page()
    registered = dict(commands(hooks.app))
    assert len(registered) >= 20
    for path, callback in registered.items():
        text = section(page, path)
        for name, parameter in inspect.signature(callback).parameters.items():
            help_text = parameter.annotation.__metadata__[-1].help
            assert help_text in text.replace("\\|", "|"), f"{path}: {name}"


def test_the_reference_pages_in_the_repository_are_those_of_the_code(hooks: ModuleType) -> None:
    for path, content in hooks.reference_pages().items():
        assert (ROOT / "docs" / path).read_text(encoding="utf-8") == content(), f"docs/{path}: run `make reference`"


def test_a_default_a_bound_and_a_requirement_are_columns_of_an_option(hooks: ModuleType) -> None:
    row = hooks._parameter_row("--rows <int range>", "Rows to read.  [default: 20000; x>=1]")
    assert row == ["`--rows`", "integer ≥ 1", "`20000`", "Rows to read."]
    assert hooks._parameter_row("RUN <str>", "The folder.  [required]") == ["`RUN`", "text", "required", "The folder."]
    row = hooks._parameter_row("-t, --task NAME[=FOLDER]", "A task, with `[a|b]`.")
    assert row == ["`-t, --task NAME[=FOLDER]`", "", "", "A task, with `[a|b]`."]


def test_the_page_of_the_manifest_has_every_setting_of_every_model(hooks: ModuleType) -> None:
    page = hooks.manifest_page()

    def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for field in model.model_fields.values():
            for inner in hooks._models_in(field.annotation):
                yield from models(inner)

    sections = {part.split("{ #")[1].split(" }")[0]: part for part in page.split("\n## ")[1:] if "{ #" in part}
    for model in models(Manifest):
        for name in model.model_fields:
            assert f"| `{name}` |" in sections[hooks._slug(model.__name__)]


def test_a_setting_has_its_type_limits_default_and_docstring(hooks: ModuleType) -> None:
    assert hooks.type_text(Annotated[int, Field(ge=1, le=100_000)] | None) == "integer ≥ 1 and ≤ 100,000"
    assert hooks.type_text(tuple[Literal["a", "b"], ...]) == "list of `a`, `b`"
    assert hooks.type_text(dict[str, float]) == "mapping to number"
    assert hooks.type_text(str | None) == "text"

    class Inner(BaseModel):
        side: int = 3

    class Outer(BaseModel):
        """Settings."""

        plain: int = 2
        """Number of
        things."""
        inner: Inner = Inner()
        many: tuple[Inner, ...] = (Inner(), Inner(side=4))
        needed: str = Field(description="A text.")

    described = hooks._descriptions(Outer)
    assert [hooks._setting_row(name, field, described) for name, field in Outer.model_fields.items()] == [
        ["`plain`", "integer", "`2`", "Number of things."],
        ["`inner`", "[Inner](#inner)", "[its defaults](#inner)", ""],
        ["`many`", "list of [Inner](#inner)", "`[{}, {side: 4}]`", ""],
        ["`needed`", "text", "required", "A text."],
    ]


def test_links_out_of_the_docs_lead_to_the_repository_and_links_to_nothing_stay(hooks: ModuleType) -> None:
    page = "guides/download.md"
    text = "[the list](../../pyproject.toml#x) [none](../../no-such-file) [here](dataset.md) [web](https://a.b/c)"
    linked = hooks.link_outside(text, page, "https://host/project/")
    assert linked == (
        "[the list](https://host/project/blob/main/pyproject.toml#x) [none](../../no-such-file) "
        "[here](dataset.md) [web](https://a.b/c)"
    )
    assert hooks.link_outside("see [the list](../../pyproject.toml)", page, None) == "see the list"
    assert hooks.link_outside("[changes](../../CHANGELOG.md)", page, None) == "[changes](../changelog.md)"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in site.rglob("*.html"):
        for part in page.read_text(encoding="utf-8").split("<")[1:]:
            loads = part.startswith(("script", "link rel=stylesheet", 'link rel="stylesheet"', "img", "iframe"))
            assert not (loads and ('="http' in part.split(">")[0] or "=http" in part.split(">")[0])), f"{page}: {part}"


@pytest.mark.slow
def test_mermaid_reads_every_diagram(hooks: ModuleType, tmp_path: Path) -> None:
    subprocess.run(["bash", "tools/fetch_mermaid.sh", str(hooks.MERMAID)], cwd=ROOT, check=True)
    browser = shutil.which("chromium")
    if browser is None or not hooks.MERMAID.exists():
        pytest.skip("needs Chromium, and Mermaid from npm")
    diagrams = {
        f"{path.relative_to(ROOT)}, diagram {number}": diagram
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for number, diagram in enumerate(re.findall(r"^```mermaid\n(.*?)^```", path.read_text(), re.M | re.S), 1)
    }
    page = tmp_path / "diagrams.html"
    page.write_text(
        f"""<pre id="result"></pre><script src="{hooks.MERMAID.as_uri()}"></script><script>
        (async () => {{
          const errors = {{}};
          for (const [name, text] of Object.entries({json.dumps(diagrams)}))
            await mermaid.parse(text).catch(error => errors[name] = error.message);
          document.getElementById("result").textContent = "read " + JSON.stringify(errors);
        }})()</script>""",
        encoding="utf-8",
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300)
    result = re.search(r'<pre id="result">read (.*?)</pre>', done.stdout, re.S)
    assert result, done.stderr
    assert json.loads(html.unescape(result[1])) == {}
