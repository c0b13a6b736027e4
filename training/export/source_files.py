"""Copies modules of this project into an exported folder, which then needs no installation of the project.

In a copy, `from lotlip_data.a.b import name` reads `from .b import name`: all modules lie side by side, which is the
layout that transformers loads code from. It reads `from b import name` where the folder itself is on Python's path.
"""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

_IMPORT = re.compile(r"^(\s*)from (lotlip_data(?:\.\w+)*)\.(\w+) import ", re.MULTILINE)
_OTHER_IMPORT = re.compile(r"^\s*import lotlip_data|^\s*from lotlip_data import ", re.MULTILINE)


def write_sources(modules: Iterable[str], folder: Path, *, is_package: bool) -> None:
    """Copy modules, and those of this project that they import, into a folder.

    Args:
        modules: Their full names.
        folder: The folder.
        is_package: Whether the modules will be imported as those of a package.

    Raises:
        ValueError: A module imports this project in a way that has no counterpart in a flat folder.
    """
    origins: dict[str, str] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        name = module.rpartition(".")[2]
        if origins.setdefault(name, module) != module:
            raise ValueError(f"{module} and {origins[name]} would be one file")
        file = folder / f"{name}.py"
        if file.exists():
            continue
        source = _source(module)
        file.write_text(_IMPORT.sub(rf"\1from {'.' if is_package else ''}\3 import ", source), encoding="utf-8")
        pending += [f"{package}.{imported}" for _, package, imported in _IMPORT.findall(source)]


def _source(module: str) -> str:
    """The source text of a module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or spec.submodule_search_locations:
        raise ValueError(f"{module} is not a module; import from the module that has the name")
    source = Path(spec.origin).read_text(encoding="utf-8")
    if found := _OTHER_IMPORT.search(source):
        raise ValueError(f"{module}: {found[0].strip()!r} has no counterpart in a flat folder")
    return source
