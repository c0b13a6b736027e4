"""Hooks of the documentation site (`mkdocs.yml` names this file; `make docs` runs them).

They generate three pages from what the project already states, so that each fact has one place. The two reference
pages are in the repository too, for readers of the source; `make reference` writes them again.

| page | generated from |
|---|---|
| `reference/cli.md` | the Typer app: every command with its help text, arguments, options and defaults |
| `reference/manifest.md` | the pydantic models that `Manifest` consists of: every setting with its type and default |
| `changelog.md` | `CHANGELOG.md` |

They also turn links from a page to a file outside `docs/` into links to the repository (`repo_url` of `mkdocs.yml`),
and serve Mermaid from the site itself if `make docs` could fetch it. Without that file, the theme loads Mermaid from
a content delivery network when a reader opens a page that has a diagram.
"""

import ast
import inspect
import math
import posixpath
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.cli.main import app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
MERMAID = ROOT / "build" / "vendor" / "mermaid.min.js"
MERMAID_ON_SITE = "assets/javascripts/mermaid.min.js"
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


# -- what mkdocs calls


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages, and Mermaid where it has been fetched."""
    from mkdocs.structure.files import File

    for path, content in {**reference_pages(), "changelog.md": changelog_page}.items():
        if (committed := files.get_file_from_path(path)) is not None:
            files.remove(committed)
        files.append(File.generated(config, path, content=content()))
    if MERMAID.exists():
        files.append(File.generated(config, MERMAID_ON_SITE, abs_src_path=str(MERMAID)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Point links that leave `docs/` to the repository."""
    return link_outside(markdown, page.file.src_uri, config.repo_url)


def on_page_content(html: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Load the site's own Mermaid on pages that have a diagram; the theme then loads no other."""
    from mkdocs.utils import get_relative_url

    if 'class="mermaid"' not in html or files.get_file_from_path(MERMAID_ON_SITE) is None:
        return html
    return f'{html}\n<script src="{get_relative_url(MERMAID_ON_SITE, page.url)}"></script>'


def reference_pages() -> dict[str, Callable[[], str]]:
    """The generated pages that the repository holds, by their path inside `docs/`."""
    return {"reference/cli.md": cli_page, "reference/manifest.md": manifest_page}


def main() -> None:
    """Write the generated reference pages into `docs/`."""
    for path, content in reference_pages().items():
        (ROOT / "docs" / path).write_text(content(), encoding="utf-8")


# -- links and the changelog


def link_outside(markdown: str, page: str, repo_url: str | None) -> str:
    """Replace links to files of the repository that are not pages.

    Args:
        markdown: The page's text.
        page: The page's path inside `docs/`.
        repo_url: Where the repository can be read; without it, the link's text stays and the link goes.

    Returns:
        The text. A link to a file that does not exist stays as it is, and the strict build reports it.
    """

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link["target"]))
        if "://" in link["target"] or target.startswith(("docs/", "..")) or not (ROOT / target).exists():
            return link[0]
        if target == "CHANGELOG.md":
            return f"[{link['text']}]({posixpath.relpath('changelog.md', posixpath.dirname(page) or '.')})"
        if repo_url:
            return f"[{link['text']}]({repo_url.rstrip('/')}/blob/main/{target}{link['anchor'] or ''})"
        return link["text"]

    return _LINK.sub(replace, markdown)


def changelog_page() -> str:
    """`CHANGELOG.md` with links that start at `docs/`."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return _LINK.sub(lambda link: link[0].replace("](docs/", "]("), text)


# -- the command line


def cli_page() -> str:
    """Every command of `lotlip-data`, as its `--help` describes it."""
    import typer

    group = typer.main.get_command(app)
    root = group.make_context("lotlip-data", [], resilient_parsing=True)
    intro = [
        "# Command line",
        str(group.help),
        "`lotlip-data COMMAND --help` prints the same text. "
        "Exit codes: 0 success, 1 failure, 2 invalid arguments or configuration, 130 interrupted.",
    ]
    commands = list(_commands(group, root))
    rows = [
        [f"[`{context.command_path.removeprefix('lotlip-data ')}`](#{_slug(context.command_path)})", _summary(command)]
        for command, context in commands
    ]
    parts = [*intro, _table(["Command", "What it does"], rows)]
    for command, context in commands:
        parts += _command_section(command, context)
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """The commands of a group with their contexts, in the order of `--help`; groups give way to their commands."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command.hidden:
            continue
        inner = command.context_class(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _commands(command, inner)
        else:
            yield command, inner


def _summary(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


def _command_section(command: Any, context: Any) -> list[str]:
    path = context.command_path
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [f"## {path} {{ #{_slug(path)} }}", _fence("text", " ".join(usage.split()))]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        example = paragraph.removeprefix("Example: ")
        parts += [paragraph] if example == paragraph else ["Example:", _fence("sh", example)]
    for kind, heading in (("argument", "Argument"), ("option", "Option")):
        rows = [
            _parameter_row(*record)
            for parameter in command.get_params(context)
            if parameter.param_type_name == kind
            and parameter.name != "help"
            and (record := parameter.get_help_record(context))
        ]
        if rows:
            parts.append(_table([heading, "Value", "Default", "Description"], rows))
    return parts


def _parameter_row(name: str, text: str) -> list[str]:
    """A table row from a parameter's columns of `--help`, such as `--rows <int range>` and `… [default: 1; x>=1]`."""
    name_part = re.fullmatch(r"(?P<name>.*?)(?: <(?P<type>.*)>)?", name)
    text_part = re.fullmatch(r"(?P<help>.*?)(?:\s*\[(?P<facts>[^\[\]]*)\])?", text, re.DOTALL)
    assert name_part and text_part
    facts = (text_part["facts"] or "").split("; ")
    defaults = [fact.removeprefix("default: ") for fact in facts if fact.startswith("default: ")]
    bounds = [fact.replace("x>=", "≥ ").replace("x<=", "≤ ") for fact in facts if fact.startswith("x")]
    kinds = {"str": "text", "int": "integer", "float": "number", "list[str]": "text, repeatable"}
    kind = (name_part["type"] or "").removesuffix(" range")
    default = "required" if "required" in facts else f"`{defaults[0]}`" if defaults else ""
    return [f"`{name_part['name']}`", " ".join([kinds.get(kind, kind), *bounds]).strip(), default, text_part["help"]]


# -- the manifest


def manifest_page() -> str:
    """Every setting of a manifest: a section for each pydantic model that `Manifest` holds, itself first."""
    module = inspect.getdoc(sys.modules[Manifest.__module__]) or ""
    parts = ["# Manifest", _paragraphs(module)]
    for model, path in _models(Manifest, ""):
        heading = f"`{path}`" if path else "Top level"
        parts += [f"## {heading} {{ #{_slug(model.__name__)} }}", _paragraphs(inspect.getdoc(model) or "")]
        described = _descriptions(model)
        rows = [_setting_row(name, field, described) for name, field in _fields(model)]
        parts.append(_table(["Setting", "Type", "Default", "Description"], rows))
    example = (ROOT / "examples" / "8x80gb.yaml").read_text(encoding="utf-8")
    parts += ["## Example", "`examples/8x80gb.yaml`, for 100 million images:", _fence("yaml", example.rstrip())]
    return "\n\n".join(parts) + "\n"


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The model and those that its fields hold, each once, with the setting that holds it."""
    seen: set[type[BaseModel]] = set()

    def walk(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
        if model in seen:
            return
        seen.add(model)
        yield model, path
        for name, field in model.model_fields.items():
            for inner in _models_in(field.annotation):
                yield from walk(inner, f"{path}.{name}".lstrip("."))

    return walk(model, path)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields that a model declares itself, then those of its base classes, nearest first."""
    seen: set[str] = set()
    for owner in model.__mro__:
        names = [name for name in inspect.get_annotations(owner) if name in model.model_fields and name not in seen]
        seen.update(names)
        yield from ((name, model.model_fields[name]) for name in names)


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """From a field's name to the docstring under it, those of base classes included."""
    described: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                described[statement.target.id] = inspect.cleandoc(following.value.value)
    return described


def _setting_row(name: str, field: FieldInfo, described: dict[str, str]) -> list[str]:
    text = field.description or described.get(name, "")
    return [f"`{name}`", type_text(field.annotation, field.metadata), _default_text(field), " ".join(text.split())]


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return f"[its defaults](#{_slug(type(value).__name__)})"
    if value is None:
        return ""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=math.inf, sort_keys=False)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _plain(value: Any) -> Any:
    """A default as YAML's own types; of a model, only what its author set."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return to_jsonable_python(value)


def type_text(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    """A type in the words of the manifest's YAML, such as `integer ≥ 1` or `list of text`."""
    limits = " and ".join(filter(None, map(_limit, constraints)))
    if limits:
        return f"{type_text(annotation)} {limits}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(type_text(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    if origin in (dict, Mapping):
        return "mapping" if arguments[1] is Any else f"mapping to {type_text(arguments[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{_slug(annotation.__name__)})"
    words = {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}
    return words.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _limit(constraint: Any) -> str:
    match constraint:
        case Ge(ge=limit):
            return f"≥ {limit:,}"
        case Gt(gt=limit):
            return f"> {limit:,}"
        case Le(le=limit):
            return f"≤ {limit:,}"
        case Lt(lt=limit):
            return f"< {limit:,}"
        case MinLen(min_length=length):
            return f"(at least {length})"
        case MaxLen(max_length=length):
            return f"(at most {length} characters)"
    inner = getattr(constraint, "metadata", None)  # a pydantic Field inside Annotated keeps its limits there
    return " and ".join(filter(None, map(_limit, inner))) if inner else ""


# -- Markdown


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fence(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _paragraphs(docstring: str) -> str:
    """A docstring as Markdown: its indented blocks are YAML."""
    parts = []
    for paragraph in re.split(r"\n\n(?=\S)", docstring):
        prose, _, block = paragraph.partition("\n\n    ")
        parts.append(prose)
        if block:
            parts.append(_fence("yaml", textwrap.dedent("    " + block)))
    return "\n\n".join(parts)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    main()
