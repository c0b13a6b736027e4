"""The process of a pool's actor: one engine, its watchdog, its metrics. `pools.py` makes it an actor of Ray's."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable

from lotlip_data.captioners.base import CaptionerConfig, EngineDead
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.config import PoolSettings
from lotlip_data.pipeline.recaptioning.results import Row, UnitResult
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker

SAVE_SECONDS = 20.0


class CaptionActor:
    """One process with one engine."""

    def __init__(self, run_url: str, config: CaptionerConfig, settings: PoolSettings) -> None:
        self._run, self._config, self._settings = Run(run_url), config, settings

    async def start(self) -> tuple[float, float]:
        """Start the engine; seconds that this took, and a first, plain image. Raises what the engine raises."""
        import ray

        from lotlip_data.captioners.registry import load_engine

        begun = time.monotonic()
        settings, name = self._settings, self._config.name
        engine = load_engine(self._config, settings.engine, **settings.engine_options.given)
        loaded = time.monotonic()
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        self._captioning = CaptionWorker(
            self._run,
            self._config,
            engine,
            settings.engine,
            settings.part_size,
            settings.concurrency,
            gpus,
            _counters(name),
        )
        watch = (asyncio.get_running_loop(), settings.stall_seconds)
        threading.Thread(target=self._watch, args=watch, name="watchdog", daemon=True).start()
        await self._captioning.warm_up()
        return loaded - begun, time.monotonic() - loaded

    async def caption(self, shard: int) -> UnitResult:
        try:
            return await self._captioning.unit(shard)
        except EngineDead:
            os._exit(1)  # Ray restarts the actor, and with it the engine

    async def leave(self) -> None:
        """Before a stop in good order."""
        await self._captioning.leave()

    def _watch(self, loop: asyncio.AbstractEventLoop, stall_seconds: float) -> None:
        """Ends the process when the engine is silent for too long: a hung one never says so itself."""
        while (silent := self._captioning.silent_for()) < stall_seconds:
            time.sleep(min(5.0, stall_seconds / 10))
        saving = asyncio.run_coroutine_threadsafe(
            self._captioning.save(f"the engine hung: no answer for {silent:.0f} s"), loop
        )
        with contextlib.suppress(TimeoutError, OSError):
            saving.result(SAVE_SECONDS)
        os._exit(1)


def _counters(captioner: str) -> Callable[[Row], None]:
    """Ray's metrics, by captioner; the ledger has the same figures of what is committed."""
    from ray.util import metrics

    kinds = ("lotlip_captions", "lotlip_rejections", "lotlip_caption_tokens")
    captions, rejections, tokens = (metrics.Counter(name, tag_keys=("captioner",)) for name in kinds)

    def count(row: Row) -> None:
        tags = {"captioner": captioner}
        (captions if row["error"] is None else rejections).inc(1, tags)
        if row["tokens"]:
            tokens.inc(row["tokens"], tags)

    return count
