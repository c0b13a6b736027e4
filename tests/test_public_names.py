"""The public names of each package: all of them exist, and importing a package stays light."""

import importlib
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.wheels import PACKAGES

HEAVY = ("torch", "ray", "transformers", "vllm", "img2dataset", "pyarrow", "pandas")
NEEDS_VLLM = {"VllmEngine", "VllmEmbedsEngine"}


def packages() -> list[str]:
    """Every package of lotlip_data, the nested ones too."""
    folders = [path.parent.relative_to(ROOT) for top in PACKAGES for path in sorted((ROOT / top).rglob("__init__.py"))]
    return ["lotlip_data." + ".".join(folder.parts) for folder in folders]


@pytest.mark.parametrize("package", packages())
def test_every_public_name_of_a_package_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        if name in NEEDS_VLLM:
            pytest.importorskip("vllm")
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error_that_names_the_package() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'downlod' from 'lotlip_data\.pipeline'"):
        from lotlip_data.pipeline import downlod  # noqa: F401


def test_importing_every_package_imports_nothing_heavy() -> None:
    code = f"""
import importlib, sys
for name in {packages()}:
    importlib.import_module(name)
print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr
