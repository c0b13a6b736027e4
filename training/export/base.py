"""What a format of exports is: one module writes it, and reads it with the library that it is for."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from PIL import Image
from torch import Tensor

from lotlip_data.training.models.lotlip import LoTLIP


class Reader(Protocol):
    """An exported folder, loaded by the library that it is for, with the folder's own preprocessing and tokenizer."""

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit features, float32 [N, D]."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features, float32 [N, D]."""


class Format(abc.ABC):
    """A format of exported folders."""

    mark: ClassVar[str]
    """The file without which the library does not load the folder. It is written last."""
    tolerance: ClassVar[float]
    """Largest difference of a unit feature from the model's."""

    @abc.abstractmethod
    def prepare(self, model: LoTLIP) -> LoTLIP:
        """The model as the format holds it, without what serves the training alone.

        Raises:
            UserError: The format cannot hold the model; the message says why, and which format can.
        """

    @abc.abstractmethod
    def write(self, model: LoTLIP, folder: Path) -> None:
        """Write all files but the mark."""

    @abc.abstractmethod
    def describe(self, model: LoTLIP, home: str) -> dict[str, Any]:
        """The content of the mark, for a folder that will be loaded from `home`: its path, or a hub id."""

    @abc.abstractmethod
    def load(self, folder: Path) -> Reader:
        """Load the folder with the library that it is for."""
