"""The manifest that a command is given, with what only later stages look into: nothing runs for days towards a typo."""

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.pipeline import trainings
from lotlip_data.pipeline.choice import choose


def load_whole(path: str) -> Manifest:
    """The manifest in the YAML file `path`. Raises UserError where one of its captioners or trainings cannot be."""
    manifest = load(path)
    try:
        if manifest.captioners:  # all captions may be imported
            choose(manifest.captioners)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    trainings.check(manifest.train, path)
    return manifest
