"""Make a CUDA build of torchvision importable beside a CPU build of torch.

Run by `make setup` with the environment's own Python:

    .venv/bin/python tools/repair_torchvision.py

PyPI's torchvision is a CUDA build. Beside a CPU torch its import stops at "operator torchvision::nms does not
exist", and vLLM cannot load an image model without it. The Python half of torchvision is all that is needed, so
the two missing operator schemas are declared just before torchvision is imported, in every process of the
environment, by a hook that a `.pth` file loads. torchaudio and torchcodec are removed where their import fails: they
break imports of transformers and nothing here uses them. Where the imports work, nothing is touched.
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
    """Why `module` cannot be imported, in a line; None where it can, or is not installed. Asks a new process."""
    probe = f"import importlib.util as u, sys\nif u.find_spec({module!r}) is None: sys.exit(0)\nimport {module}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return None if done.returncode == 0 else said[-1]


def main() -> int:
    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    if error := import_error("torchvision"):
        if "torchvision::nms" not in error:
            print(f"torchvision does not import, for a reason that this repair does not know: {error}")
            return 1
        (site / "_declare_torchvision_operators.py").write_text(HOOK, encoding="utf-8")
        (site / "_declare_torchvision_operators.pth").write_text("import _declare_torchvision_operators\n")
        if error := import_error("torchvision"):
            print(f"torchvision still does not import: {error}")
            return 1
        print("torchvision: declared the operators that its CUDA build lacks beside this torch")
    broken = [name for name in ("torchaudio", "torchcodec") if import_error(name)]
    if broken:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)
        print(f"removed, since their import fails here: {', '.join(broken)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
