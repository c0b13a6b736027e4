"""Make a CUDA build of torchvision importable with a CPU build of torch.

`make setup` runs it with the environment's own Python:

    .venv/bin/python tools/repair_torchvision.py

PyPI's torchvision is a CUDA build. With a CPU build of torch its import fails with "operator torchvision::nms does not
exist", and vLLM cannot load an image model without torchvision. Only the Python part of torchvision is needed. So a
hook, which a `.pth` file loads in every process of the environment, declares the two missing operator schemas just
before torchvision is imported. torchaudio and torchcodec are uninstalled if their import fails: they break imports of
transformers, and this project does not use them. If all imports work, nothing is changed.
"""

import pathlib
import subprocess
import sys
import sysconfig

HOOK = '''\
"""Declares torchvision's operator schemas before torchvision is imported (written by tools/repair_torchvision.py)."""

import sys


class _DeclareOperators:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch.library.define(
                "torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return None


sys.meta_path.insert(0, _DeclareOperators())
'''


def import_error(module: str) -> str | None:
    """The last line of the error when a new process imports `module`; None if it works or is not installed."""
    probe = f"import importlib.util as u, sys\nif u.find_spec({module!r}) is None: sys.exit(0)\nimport {module}"
    process = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    return None if process.returncode == 0 else lines[-1]


def main() -> int:
    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    if error := import_error("torchvision"):
        if "torchvision::nms" not in error:
            print(f"torchvision cannot be imported, for a reason that this script cannot repair: {error}")
            return 1
        (site / "_declare_torchvision_operators.py").write_text(HOOK, encoding="utf-8")
        (site / "_declare_torchvision_operators.pth").write_text("import _declare_torchvision_operators\n")
        if error := import_error("torchvision"):
            print(f"torchvision still cannot be imported: {error}")
            return 1
        print("torchvision: declared the operators that its CUDA build lacks with this torch")
    broken = [name for name in ("torchaudio", "torchcodec") if import_error(name)]
    if broken:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)
        print(f"uninstalled, because their import fails: {', '.join(broken)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
