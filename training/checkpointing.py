"""Checkpoints that resume a training. Each one is complete or absent.

A checkpoint is one object, `checkpoints/step-00000500.ckpt`: a sha256, then the content in torch's own format. The
content is the trained weights, the state of the optimizer and the number of data lanes; the name has the step. All
else (order of the data, choice of texts, crops, dropout, learning rate) depends on these and the seed alone.
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
_DIGEST_BYTES = 64  # a sha256 in hexadecimal digits


class DamagedCheckpoint(ValueError):
    """A checkpoint whose content is not what was written."""


class CheckpointManager:
    """The checkpoints in a training's folder. Only the latest `keep` of them are kept."""

    def __init__(self, folder: str, keep: int) -> None:
        self._folder = storage.join(folder, "checkpoints")
        self._keep = keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        matches = map(_NAME.fullmatch, storage.list_names(self._folder))
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of a step, then remove the old ones."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest().encode()
        storage.replace(self._url(step), b"".join((digest, content)))
        for old in self.steps()[: -self._keep]:
            storage.remove(self._url(old))

    def load_last(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest intact checkpoint, or None. Damaged checkpoints are logged and skipped.

        Raises:
            OSError, UserError: The storage cannot be read. That says nothing about the checkpoints, and a training that
                started again at step 1 would lose them.
        """
        for step in reversed(self.steps()):
            try:
                return step, self.load(step)
            except DamagedCheckpoint as error:
                logger.warning(f"skipping a damaged checkpoint: {self._url(step)} ({error})")
        return None

    def load(self, step: int) -> dict[str, Any]:
        """The state of a step, in the memory of the CPU whatever device it was written on.

        Raises:
            DamagedCheckpoint: The content is not what was written.
            OSError, UserError: The storage cannot be read.
        """
        data = memoryview(storage.read_bytes(self._url(step)))
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(content).hexdigest().encode() != bytes(digest):
            raise DamagedCheckpoint("its content does not match its sha256")
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (ValueError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as error:
            raise DamagedCheckpoint(f"torch cannot read it: {error}") from error
        return state

    def remove_all(self) -> None:
        storage.remove(self._folder)

    def _url(self, step: int) -> str:
        return storage.join(self._folder, f"step-{step:08d}.ckpt")
