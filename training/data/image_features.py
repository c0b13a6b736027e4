"""Features of a run's images by a model, stored by image shard, so that each image is computed once.

The score stage computes them before there is a dataset. Scorers with the same model share them, and so does the
training's cache (`feature_cache`), whose files are by tar of the dataset: it takes the features from here where its
tower is the same. A file is RUN/features/MODEL/images-SHARD-STAMP.parquet. MODEL identifies the weights and the
preprocessing, and STAMP the images of the shard.

Shapes: N images, D width of a feature.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.run_layout import Run, shard_name

_PREFIX = "images-"
_ENDING = ".parquet"
_REMEDY = "Remove it; the next run computes it again."

FeaturesByImage = dict[str, np.ndarray]
"""By sha256 of the downloaded bytes, a feature: float16 [D], as the model gives it, not normalised."""


def file_of(shard: int, stamp: str) -> str:
    """The name of the file with the features of an image shard."""
    return f"{_PREFIX}{shard_name(shard)}-{stamp}{_ENDING}"


def read_features(run: Run, model: str, file: str) -> FeaturesByImage:
    """The features in a file; empty if there is none. Raises UserError if it is damaged."""
    url = run.features(model, file)
    if not storage.exists(url):
        return {}
    table = artifacts.read_parquet(url, _REMEDY)
    names = table["sha256"].to_pylist()
    values = np.frombuffer(b"".join(table["feature"].to_pylist()), np.float16)
    return dict(zip(names, values.reshape(len(names), -1), strict=True)) if names else {}


def write_features(run: Run, model: str, file: str, features: Mapping[str, np.ndarray]) -> None:
    """Replace a file by these features."""
    table = pa.table(
        {
            "sha256": pa.array(features, pa.string()),
            "feature": pa.array([feature.astype(np.float16).tobytes() for feature in features.values()], pa.binary()),
        }
    )
    storage.replace(run.features(model, file), artifacts.encode_parquet(table))


def files_by_shard(run: Run, model: str) -> dict[int, list[str]]:
    """By image shard, the files with features by a model. One listing."""
    files: dict[int, list[str]] = {}
    for file in storage.list_names(run.features(model), _ENDING):
        if file.startswith(_PREFIX):
            files.setdefault(int(file.removeprefix(_PREFIX).partition("-")[0]), []).append(file)
    return files


def features_of(run: Run, model: str, files: Iterable[str], images: Sequence[str]) -> np.ndarray | None:
    """float16 [N, D] of the images of a shard, by their sha256; None if one has no feature here.

    Args:
        run: The run.
        model: Identifies the model.
        files: The files of the shard.
        images: The sha256 of the downloaded bytes of each.
    """
    known: FeaturesByImage = {}
    for file in files:
        known |= read_features(run, model, file)
    found = [known[image] for image in images if image in known]
    return np.stack(found) if found and len(found) == len(images) else None
