"""What a training tells of itself, as JSON lines and to TensorBoard, and whether it still learns."""

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError


class TrainingDiverged(UserError):
    """The loss is no number any more, or has exploded; the message says at which step, and what to try."""


def metrics_of(folder: str) -> str:
    """Where the training in `folder` writes its steps."""
    return storage.join(folder, "metrics.jsonl")


class Metrics:
    """metrics.jsonl, one line a step, and the same in tensorboard/. Resuming drops the steps that will be done again.

    Both are written where `flush` is called: an object storage cannot append, so what is there is replaced.
    """

    FLUSH_SECONDS = 10.0
    SHARE = 0.02
    """Of the time that may go into flushing: the files grow, and storage may be slow."""

    def __init__(self, folder: str, steps_done: int) -> None:
        self._url = metrics_of(folder)
        self._board = storage.join(folder, "tensorboard")
        self._scratch = tempfile.TemporaryDirectory()
        # Not the SummaryWriter: its queue may still hold what was added when `flush` returns.
        suffix = f".{steps_done:08d}"  # apart from the files of the start that this one resumes
        self._curves = EventsWriter(str(Path(self._scratch.name, "events")), suffix)
        if steps_done:
            begun = SessionLog(status=SessionLog.START)  # TensorBoard forgets the steps from here on
            self._curves.write_event(Event(wall_time=time.time(), step=steps_done + 1, session_log=begun))
        self._next = time.monotonic() + self.FLUSH_SECONDS
        self.lines: list[dict[str, float]] = []
        if steps_done and storage.exists(self._url):
            there = map(json.loads, storage.read_bytes(self._url).decode().splitlines())
            self.lines = [line for line in there if line["step"] <= steps_done]

    def add(self, step: int, **values: float) -> None:
        self.lines.append({"step": step, **values})
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._curves.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def is_due(self) -> bool:
        """Whether it is time to flush again."""
        return time.monotonic() > self._next

    def flush(self) -> None:
        began = time.monotonic()
        storage.replace(self._url, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        self._curves.flush()
        for path in Path(self._scratch.name).iterdir():
            storage.replace(storage.join(self._board, path.name), path.read_bytes())
        ended = time.monotonic()
        self._next = ended + max(self.FLUSH_SECONDS, (ended - began) / self.SHARE)

    def close(self) -> None:
        self.flush()
        self._curves.close()
        self._scratch.cleanup()


class DivergenceMonitor:
    """Stops a training that is lost: a loss or a gradient that is no number, or a loss far above mere chance.

    By chance, every one of a loss's terms is the logarithm of the batch. A training that is above twice that for
    `PATIENCE` steps in a row has come from better weights, so no checkpoint is kept of those steps.
    """

    PATIENCE = 10

    def __init__(self, batch: int, terms: int) -> None:
        self._limit = 2 * terms * math.log(batch)
        self._above = 0

    @property
    def is_sound(self) -> bool:
        """Off while the loss is too high: what is learned now may be worth nothing."""
        return self._above == 0

    def check(self, loss: float, norm: float, gradients: Iterable[tuple[str, Tensor | None]]) -> None:
        """Raises TrainingDiverged, saying what is seen, after a step's backward pass and before its update."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            bad = [name for name, slope in gradients if slope is not None and not slope.isfinite().all()]
            which = f"; not finite: {len(bad)} gradients, the first that of {bad[0]}" if bad else ""
            raise TrainingDiverged(f"the loss is {loss} and the gradient's norm {norm}{which}")
        self._above = self._above + 1 if loss > self._limit else 0
        if self._above == self.PATIENCE:
            raise TrainingDiverged(
                f"the loss is {loss:.3g}, and has been above {self._limit:.3g}, twice that of guessing, for "
                f"{self._above} steps; the gradient's norm is {norm:.3g}"
            )


def memory_gib() -> float:
    """The most memory that this process has held: on a GPU the GPU's, else its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
