"""Image features of a whole dataset: those that trainings keep, or computed here when somebody asks for them."""

import threading

from PIL.Image import DecompressionBombError

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.samples import Samples
from lotlip_data.training.data.dataset import DataError, Dataset, Shard
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.data.image_transforms import ImageTransform
from lotlip_data.training.models.towers import ImageTower


class Features:
    """The features of one image tower, a shard at a time."""

    def __init__(self, run: Run, samples: Samples, tower: ImageTower, transform: ImageTransform) -> None:
        shards = tuple(Shard(file.tar, file.parquet, file.sha256, file.samples) for file in samples.files)
        dataset = Dataset(
            run.url, shards, samples.captioners, "punkt" if samples.sub_captions == "punkt" else "authors"
        )
        self._cache = FeatureCache(dataset, tower, transform)
        self._tars = [file.tar for file in samples.files]
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self.shard = self._cache.shard
        """float16 [samples, D] of a shard by its index, not normalised. Raises DataError where it cannot be read."""
        self.folder = self._cache.folder
        self.shards = self._cache.shards
        self.failed: list[str] = []
        """Shards that could not be computed, with the reason; and why the computing ended before its end."""

    def missing(self) -> list[int]:
        """The shards without features. One listing."""
        return self._cache.missing()

    @property
    def computing(self) -> bool:
        """Whether missing ones are being computed."""
        return self._thread is not None and self._thread.is_alive()

    def compute(self) -> None:
        """Begin to compute the missing ones, unless that is under way. It ends with the process; nothing is lost."""
        with self._turn:
            if not self.computing:
                self.failed = []
                self._thread = threading.Thread(target=self._compute, daemon=True)
                self._thread.start()

    def _compute(self) -> None:
        try:
            for index in self.missing():
                try:
                    self._cache.compute(index)
                except DataError as error:  # which names the file
                    self.failed.append(str(error))
                except (OSError, DecompressionBombError) as error:
                    self.failed.append(f"{self._tars[index]}: {error}")
        except Exception as error:  # a GPU without memory, say: nobody else would learn of it
            self.failed.append(f"the computing of image features ended: {type(error).__name__}: {error}")
            raise
