"""Public names of a package that are imported when they are first used (PEP 562).

A package's `__init__.py` names what it exports without importing torch, ray or another heavy library:

    if TYPE_CHECKING:
        from lotlip_data.training.trainer import train

    __all__ = ["train"]
    __getattr__ = lazy_exports(__name__, {"trainer": ["train"]})
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(package: str, exports: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A `__getattr__` for the package.

    Args:
        package: The package's `__name__`.
        exports: By module of the package, the names that the package exports from it.
    """
    modules = {name: f"{package}.{module}" for module, names in exports.items() for name in names}

    def import_name(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return import_name
