"""Find a model: a hub id, a local folder, or the short name of a checkpoint that comes with the project."""

from importlib.resources import files
from pathlib import Path

SHIPPED = "tiny-"
"""Prefix of the names of the checkpoints that come with the project."""


def resolve(model: str) -> str:
    """The folder or hub id of a model.

    Settings keep the short name instead of the folder, so that they mean the same on every machine.

    Raises:
        ValueError: For a short name that this installation does not have.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return str(local)
    if not model.startswith(SHIPPED):
        return model
    folder = Path(str(files("lotlip_data.synthetic"))) / "checkpoints" / model
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in folder.parent.glob(f"{SHIPPED}*")))
        raise ValueError(f"{model!r}: no such checkpoint comes with the project; known are {known or 'none'}")
    return str(folder)
