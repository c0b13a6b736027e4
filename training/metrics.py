"""Writes the metrics of a training as JSON lines and for TensorBoard, and stops a training that diverges."""

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, with_config
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import TRAINING_METRICS
from lotlip_data.training.devices import local_device


class TrainingDiverged(UserError):
    """The loss is not a finite number or has exploded. The message names the step and what to change."""


def metrics_url(folder: str) -> str:
    """The metrics.jsonl of the training in `folder`."""
    return storage.join(folder, TRAINING_METRICS)


@with_config(ConfigDict(extra="allow"))
class _Line(TypedDict):
    """The values of a step."""

    step: int


def _read_lines(url: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Raises UserError if one is damaged."""
    lines = enumerate(storage.read_bytes(url).splitlines(), 1)
    remedy = "Correct or remove this line."
    return [dict(artifacts.parse_json(line, f"{url}, line {number}", remedy, _Line)) for number, line in lines]


class Metrics:
    """metrics.jsonl with one line per step, and the same values in tensorboard/.

    Resuming drops the lines of the steps that are computed again. `flush` writes both files as a whole: object storage
    cannot append.
    """

    FLUSH_SECONDS = 10.0
    MAX_FLUSH_SHARE = 0.02
    """Largest share of the time that is spent on flushing: the files grow, and storage can be slow."""

    def __init__(self, folder: str, steps_done: int) -> None:
        self._url = metrics_url(folder)
        self._board = storage.join(folder, "tensorboard")
        self._scratch = tempfile.TemporaryDirectory()
        suffix = f".{steps_done:08d}"  # different from the file of the run that this one resumes
        # Not SummaryWriter: values can remain in its queue after `flush` returns.
        self._events = EventsWriter(str(Path(self._scratch.name, "events")), suffix)
        if steps_done:
            start = SessionLog(status=SessionLog.START)  # TensorBoard drops earlier values of these steps
            self._events.write_event(Event(wall_time=time.time(), step=steps_done + 1, session_log=start))
        self._next_flush = time.monotonic() + self.FLUSH_SECONDS
        self._lines: list[dict[str, Any]] = []
        if steps_done and storage.exists(self._url):
            self._lines = [line for line in _read_lines(self._url) if line["step"] <= steps_done]

    def add(self, step: int, **values: float) -> None:
        """Record the values of a step. They are written at the next `flush`."""
        self._lines.append({"step": step, **values})
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def is_due(self) -> bool:
        """Whether the time of the next flush has come."""
        return time.monotonic() > self._next_flush

    def flush(self) -> None:
        started = time.monotonic()
        storage.replace(self._url, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
        self._events.flush()
        for path in Path(self._scratch.name).iterdir():
            storage.replace(storage.join(self._board, path.name), path.read_bytes())
        ended = time.monotonic()
        self._next_flush = ended + max(self.FLUSH_SECONDS, (ended - started) / self.MAX_FLUSH_SHARE)

    def close(self) -> None:
        self.flush()
        self._events.close()
        self._scratch.cleanup()


class DivergenceMonitor:
    """Detects a loss or gradient that is not finite, and a loss far above that of guessing.

    A training whose loss exceeds twice that of guessing for `PATIENCE_STEPS` steps in a row has diverged. Its earlier
    weights were better, so these steps get no checkpoint.
    """

    PATIENCE_STEPS = 10

    def __init__(self, guessing: float) -> None:
        """`guessing` is the loss where all similarities are 0."""
        self._limit = 2 * guessing
        self._steps_above = 0

    @property
    def is_healthy(self) -> bool:
        """False while the loss is above the limit: the current weights can be worthless."""
        return self._steps_above == 0

    def check(self, loss: float, norm: float, gradients: Iterable[tuple[str, Tensor | None]]) -> None:
        """Check a step after its backward pass and before its update.

        Args:
            loss: The loss of the global batch.
            norm: The norm of the gradient.
            gradients: Name and gradient of each parameter.

        Raises:
            TrainingDiverged: The message states the loss, the norm and the first gradient that is not finite.
        """
        if not math.isfinite(loss) or not math.isfinite(norm):
            bad = [name for name, gradient in gradients if gradient is not None and not gradient.isfinite().all()]
            details = f"; {len(bad)} gradients are not finite, the first one is that of {bad[0]}" if bad else ""
            raise TrainingDiverged(f"the loss is {loss} and the gradient norm is {norm}{details}")
        self._steps_above = self._steps_above + 1 if loss > self._limit else 0
        if self._steps_above == self.PATIENCE_STEPS:
            raise TrainingDiverged(
                f"the loss is {loss:.3g} and has been above {self._limit:.3g}, twice that of guessing, for "
                f"{self._steps_above} steps; the gradient norm is {norm:.3g}"
            )


def memory_gib() -> float:
    """Peak memory of this process in GiB: GPU memory where there is a GPU, else resident memory."""
    if local_device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 2**30
