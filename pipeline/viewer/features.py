"""Image features of a whole dataset: those that training runs cached, or computed here on request."""

import threading

from PIL.Image import DecompressionBombError

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.training.data.dataset import DataError, Dataset
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.data.image_transforms import ImageTransform
from lotlip_data.training.models.towers import ImageTower


class ImageFeatures:
    """The features of one image tower, one shard at a time."""

    def __init__(self, run: Run, samples: Samples, tower: ImageTower, transform: ImageTransform) -> None:
        shards = samples.files
        dataset = Dataset(
            run.url, shards, samples.captioners, "punkt" if samples.sub_captions == "punkt" else "authors"
        )
        self._cache = FeatureCache(dataset, tower, transform)
        self._tars = [file.tar_url for file in samples.files]
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.read_shard = self._cache.shard
        """Returns float16 [samples, D] for a shard index, not normalised. Raises DataError if it cannot be read."""
        self.folder = self._cache.folder
        self.shards = self._cache.shards
        self.problems: list[str] = []
        """Shards whose features could not be computed, with the reason; and why the computation ended early."""

    def missing(self) -> list[int]:
        """Return the shards without features. Makes one listing."""
        return self._cache.missing()

    @property
    def computing(self) -> bool:
        """Whether missing features are being computed."""
        return self._thread is not None and self._thread.is_alive()

    def compute(self) -> None:
        """Start to compute the missing features in the background, unless this is in progress.

        The thread ends with the process; the features of finished shards stay.
        """
        with self._lock:
            if not self.computing:
                self.problems = []
                self._thread = threading.Thread(target=self._compute_missing, daemon=True)
                self._thread.start()

    def _compute_missing(self) -> None:
        try:
            for index in self.missing():
                try:
                    self._cache.compute(index)
                except DataError as error:  # its message names the file
                    self.problems.append(str(error))
                except (OSError, DecompressionBombError) as error:
                    self.problems.append(f"{self._tars[index]}: {error}")
        except Exception as error:  # such as a GPU out of memory; a thread's exception reaches no request
            self.problems.append(f"image features: the computation ended early: {type(error).__name__}: {error}")
            raise
