"""The trainings of a manifest's `train` section: each entry holds settings of `TrainConfig`, a `name`, and `ray`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests.errors import UserError

if TYPE_CHECKING:
    from lotlip_data.training.config import TrainConfig


def name_of(entry: Mapping[str, Any]) -> str:
    """Of its folder: its method's where none is given."""
    return str(entry.get("name", entry.get("method", "lotlip")))


def settings_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `make_config`."""
    return {key: value for key, value in entry.items() if key not in ("name", "ray")}


def config_of(entry: Mapping[str, Any]) -> "TrainConfig":
    """Raises UserError where a name or a value is wrong."""
    from lotlip_data.training.config import make_config

    return make_config(**settings_of(entry))


def check(entries: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises UserError, naming the file `where`, entry and fix, where an entry could not be trained on any data."""
    from lotlip_data.pipeline.train_ray import Workers

    for place, entry in enumerate(entries):
        try:
            config_of(entry)
            if entry.get("ray") is not None:
                Workers.of(entry["ray"])
        except UserError as error:
            raise UserError(f"{where}: `train.{place}`: {error}") from None
    names = [name_of(entry) for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: `train`: {', '.join(twice)} is named twice; give one of them another `name`")
