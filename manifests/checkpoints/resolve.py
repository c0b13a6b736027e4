"""Where a model lies: a hub id, a local folder, or the short name of a checkpoint that comes with the project."""

from importlib.resources import files
from pathlib import Path

SHIPPED = "tiny-"
"""How the names of the offline world's checkpoints begin."""


def resolve(model: str) -> str:
    """The folder or hub id that `model` stands for.

    Settings keep the short name rather than the folder, so they mean the same on every machine. Raises ValueError for
    a short name that this installation lacks.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return str(local)
    if not model.startswith(SHIPPED):
        return model
    folder = Path(str(files("lotlip_data.synthetic"))) / "checkpoints" / model
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in folder.parent.glob(f"{SHIPPED}*")))
        raise ValueError(f"{model!r}: no such checkpoint comes with the project; there are {known or 'none'}")
    return str(folder)
