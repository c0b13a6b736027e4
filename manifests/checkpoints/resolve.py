"""Find a model: a hub id, a local folder, or the short name of a tiny checkpoint of the repository."""

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
        if not known:
            raise ValueError(
                f"{model!r}: the tiny checkpoints are in the repository of lotlip-data and not in its wheel; "
                "install from a clone with `pip install --editable`, or give the model's folder"
            )
        raise ValueError(f"{model!r}: no such checkpoint comes with the project; known are {known}")
    return str(folder)
