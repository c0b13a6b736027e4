"""What a training needs to go on: checkpoints that are whole or absent.

A checkpoint is one object, `checkpoints/step-00000500.ckpt`: the sha256 of what follows, then torch's own format. It
holds the trained weights, the optimiser's state, the step and how many lanes the data goes in. Everything else (order
of the data, choice of texts, crops, dropout, learning rate) follows from those and the seed.
"""

import hashlib
import io
import logging
import pickle
import re
from typing import Any

import torch

from lotlip_data.manifests import storage

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})\.ckpt")
_DIGEST = 64  # hexadecimal digits of a sha256


class CheckpointManager:
    """The checkpoints in a training's folder; only the last `keep` stay."""

    def __init__(self, folder: str, keep: int) -> None:
        self._folder = storage.join(folder, "checkpoints")
        self._keep = keep

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order."""
        names = map(_NAME.fullmatch, storage.list_names(self._folder))
        return sorted(int(found[1]) for found in names if found)

    def save(self, step: int, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest().encode()
        storage.replace(self._url(step), b"".join((digest, content)))
        for old in self.steps()[: -self._keep]:
            storage.remove(self._url(old))

    def load_last(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest whole checkpoint; a damaged one is skipped, and said so."""
        for step in reversed(self.steps()):
            try:
                return step, self.load(step)
            except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning(f"skipping a damaged checkpoint: {self._url(step)} ({error})")
        return None

    def remove_all(self) -> None:
        storage.remove(self._folder)

    def _url(self, step: int) -> str:
        return storage.join(self._folder, f"step-{step:08d}.ckpt")

    def load(self, step: int) -> dict[str, Any]:
        """The state of a step. Raises OSError, ValueError, … where it is not whole."""
        data = memoryview(storage.read_bytes(self._url(step)))
        digest, content = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(content).hexdigest().encode() != bytes(digest):
            raise ValueError("its sha256 is not what it says")
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        return state
