"""One actor of a pool: an engine, its watchdog and its metrics. `actor_pool.py` makes it a Ray actor."""

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from lotlip_data.captioners.base import Capacity, CaptionerConfig, Engine, EngineDead, EngineUnreachable
from lotlip_data.captioners.load_errors import EngineStartError
from lotlip_data.captioners.model_files import combined_digest
from lotlip_data.captioners.sizing import ReadingDefaults, reading_defaults
from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints.hub import HubUnreachable
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.storage_retry import is_transient
from lotlip_data.pipeline.core.gpus import InstalledGpus, use_assigned
from lotlip_data.pipeline.core.outcome import one_line
from lotlip_data.pipeline.recaptioning.claims import (
    check_model,
    claim_model,
    claim_revision,
    origin,
    with_claimed_revision,
)
from lotlip_data.pipeline.recaptioning.config import PoolSettings, engine_options
from lotlip_data.pipeline.recaptioning.results import Row
from lotlip_data.pipeline.recaptioning.shard_text import ShardOutcome
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker

MAX_FAILED_STARTS = 5
"""Failed starts of an engine in a row after which its actor is removed, whatever the reasons."""

REPEATED_STARTS = 2
"""Failed starts in a row with the same reason after which its actor is removed."""

SAVE_SECONDS = 20.0
"""Time to save finished captions before the watchdog ends the process."""


class StartFailed(Exception):
    """An engine did not start.

    Args:
        reason: What failed and what to do, in one line.
        trace: URL of the file with the whole trace; empty if there is none.
        tries: Number of tries with this reason after which no further one makes sense.
    """

    def __init__(self, reason: str, trace: str, tries: int) -> None:
        super().__init__(reason, trace, tries)  # all of them, for pickling
        self.reason, self.trace, self.tries = reason, trace, tries

    def __str__(self) -> str:
        return f"{self.reason} (whole trace: {self.trace})" if self.trace else self.reason


@dataclass(frozen=True)
class StartReport:
    """A start of an engine that succeeded."""

    model: str
    engine: str
    """What `auto` stands for here."""
    host: str
    gpus: float
    load_seconds: float
    warm_up_seconds: float
    """Time until plain images had their captions."""
    capacity: Capacity | None
    """None for an engine that does not report it."""
    reading: ReadingDefaults
    """How images are read for the engine."""

    def __str__(self) -> str:
        model = f"{self.model}, engine {self.engine}" + (f", {self.capacity}" if self.capacity else "")
        seconds = f"started in {self.load_seconds:.1f} s, first image in {self.warm_up_seconds:.1f} s"
        return f"{seconds}; {model}; {self.reading}"


def _tries(error: Exception) -> int:
    """How often a start may fail with the same error."""
    if isinstance(error, HubUnreachable):
        return MAX_FAILED_STARTS  # a network that may come back
    if isinstance(error, UserError):
        return 1  # whatever it was raised from, such as an OSError about a file of the model
    cause = error.__cause__ or error
    is_away = isinstance(cause, EngineUnreachable) or is_transient(cause)
    return MAX_FAILED_STARTS if is_away else REPEATED_STARTS


class CaptionActor:
    """One process with one engine.

    Args:
        run_url: The run.
        config: The captioner.
        settings: Its pool.
        texts: Names of the captioner's texts that are wanted.
    """

    def __init__(self, run_url: str, config: CaptionerConfig, settings: PoolSettings, texts: Sequence[str]) -> None:
        self._run, self._config, self._settings = Run(run_url), config, settings
        self._texts = [text for text in config.texts if text.name in texts]
        self._starting: asyncio.Future[StartReport] | None = None

    def __repr__(self) -> str:
        """What Ray's dashboard calls the actor."""
        return f"recaption {self._config.name}"

    async def placed(self) -> None:
        """Answer, and thereby say that Ray has found room for this process."""

    async def start(self) -> StartReport:
        """Start the engine and caption plain images. Further calls, after an answer was lost, wait for the same start.

        Raises:
            StartFailed: The engine did not start, or the captioner fails on a plain image, or its model has changed
                since it made the captions of the run.
        """
        try:
            self._starting = self._starting or asyncio.ensure_future(self._start())
            return await asyncio.shield(self._starting)
        except Exception as error:  # noqa: BLE001 - an engine raises any type, and not every one survives pickling
            raise await asyncio.to_thread(self._failure, error) from None

    def _failure(self, error: Exception) -> StartFailed:
        """The exception for the driver. The whole trace goes to the run's `logs/`, unless the message says it all."""
        reason, trace = str(error) if isinstance(error, EngineStartError) else one_line(error), ""
        if error.__cause__ or not isinstance(error, UserError):
            digest = hashlib.sha256(reason.encode()).hexdigest()[:12]  # one file for each reason, whoever fails
            trace = self._run.engine_log(self._config.name, digest)
            with contextlib.suppress(OSError, UserError):
                storage.replace(trace, "".join(traceback.format_exception(error)).encode(errors="replace"))
        return StartFailed(reason, trace, _tries(error))

    async def _start(self) -> StartReport:
        import ray

        from lotlip_data.captioners.registry import get_kind, load_engine

        started = time.monotonic()
        settings, name = self._settings, self._config.name
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        if get_kind(self._config.kind).uses_torch:
            await asyncio.to_thread(use_assigned, gpus, f"captioner {name!r}")
        model = await asyncio.to_thread(origin, self._config, settings.engine_options)
        config = self._claim(model)
        options = engine_options(config, settings, gpus)
        config = config.only(text.name for text in self._texts)  # the others may be ones that cannot run here
        engine_name = get_kind(config.kind).choose_engine(config, settings.engine)
        engine = load_engine(config, engine_name, **options.explicit)
        loaded = time.monotonic()
        reading = _reading(settings, gpus, engine)
        self._worker = CaptionWorker(
            self._run,
            self._config.only(text.name for text in self._texts),
            engine,
            engine_name,
            settings.part_size,
            settings.concurrency,
            gpus,
            _counters(),
            combined_digest(model),
            settings.max_rejected,
            reading.decoders,
            reading.read_batch,
        )
        arguments = (asyncio.get_running_loop(), settings.stall_seconds)
        threading.Thread(target=self._watch, args=arguments, name="watchdog", daemon=True).start()
        await self._worker.warm_up([text.name for text in self._texts])
        for text in self._texts:
            claim_model(self._run, text, model)
        report = StartReport(
            self._config.model,
            engine_name,
            platform.node(),
            gpus,
            round(loaded - started, 1),
            round(time.monotonic() - loaded, 1),
            getattr(engine, "capacity", None),
            reading,
        )
        await asyncio.to_thread(self._record, report)
        return report

    def _claim(self, model: dict[str, str]) -> CaptionerConfig:
        """Compare the model with the one of earlier captions. Returns the configuration to load the engine with."""
        together = [text.name for text in self._config.texts]
        for text in self._texts:
            check_model(self._run, text, model)
            claim_revision(self._run, text, together)  # the driver may not reach the hub
        return with_claimed_revision(self._run, self._config, [text.name for text in self._texts])

    def _record(self, report: StartReport) -> None:
        now = int(time.time())
        target = self._run.engine_start(self._config.name, report.host, now, os.getpid())
        with contextlib.suppress(OSError, UserError):  # like a log, it is not worth an engine
            storage.replace(target, json.dumps({"started_at": now, **asdict(report)}, indent=2).encode())

    async def caption(self, shard: int, texts: Sequence[str]) -> ShardOutcome:
        """Caption and commit these texts of a shard. If the engine dies, the process ends; Ray restarts the actor."""
        try:
            return await self._worker.caption_shard(shard, texts)
        except EngineDead:
            os._exit(1)

    async def drain(self) -> None:
        """Stop the running shards and save their finished captions."""
        await self._worker.drain()

    def _watch(self, loop: asyncio.AbstractEventLoop, stall_seconds: float) -> None:
        """End the process if the engine is silent for too long: a hung engine raises no error."""
        while (silent := self._worker.silent_for()) < stall_seconds:
            time.sleep(min(5.0, stall_seconds / 10))
        saving = asyncio.run_coroutine_threadsafe(
            self._worker.save_after_death(f"the engine hung: no answer for {silent:.0f} s"), loop
        )
        with contextlib.suppress(TimeoutError, OSError):
            saving.result(SAVE_SECONDS)
        os._exit(1)


def _reading(settings: PoolSettings, gpus: float, engine: Engine) -> ReadingDefaults:
    """How images are read for an engine: the pool's settings, or what follows from the machine and the engine.

    Args:
        settings: The pool's settings.
        gpus: GPUs that Ray reserved for the actor.
        engine: The engine.
    """
    machine_gpus = max(1, InstalledGpus.detect().devices) if gpus else 0
    defaults = reading_defaults(gpus=machine_gpus, sequences=engine.window)
    return ReadingDefaults(settings.decoders or defaults.decoders, settings.read_batch or defaults.read_batch)


def _counters() -> Callable[[str, Row], None]:
    """Ray metrics by the name of the text. The ledger has the same figures for committed shards."""
    from ray.util import metrics

    kinds = ("lotlip_captions", "lotlip_rejections", "lotlip_caption_tokens")
    captions, rejections, tokens = (metrics.Counter(name, tag_keys=("captioner",)) for name in kinds)

    def count(name: str, row: Row) -> None:
        tags = {"captioner": name}
        (captions if row["error"] is None else rejections).inc(1, tags)
        if row["tokens"]:
            tokens.inc(row["tokens"], tags)

    return count
