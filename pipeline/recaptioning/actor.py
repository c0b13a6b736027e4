"""One actor of a pool: an engine, its watchdog and its metrics. `actor_pool.py` makes it a Ray actor."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable

from lotlip_data.captioners.base import CaptionerConfig, EngineDead
from lotlip_data.captioners.model_files import combined_digest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.claims import check_model, claim_model, local_files
from lotlip_data.pipeline.recaptioning.config import PoolSettings
from lotlip_data.pipeline.recaptioning.results import Row, UnitResult
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker

SAVE_SECONDS = 20.0
"""Time to save finished captions before the watchdog ends the process."""


class CaptionActor:
    """One process with one engine."""

    def __init__(self, run_url: str, config: CaptionerConfig, settings: PoolSettings) -> None:
        self._run, self._config, self._settings = Run(run_url), config, settings

    async def start(self) -> tuple[float, float]:
        """Start the engine and caption plain images; return the seconds of each.

        Raises what the engine raises, CaptionerBroken for a captioner that fails on a plain image, and RecaptionError
        for a model that has changed since it made the captions of the run.
        """
        import ray

        from lotlip_data.captioners.registry import load_engine

        started = time.monotonic()
        settings, name = self._settings, self._config.name
        files = await asyncio.to_thread(local_files, self._config)
        check_model(self._run, self._config, files)
        engine = load_engine(self._config, settings.engine, **settings.engine_options.explicit)
        loaded = time.monotonic()
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        self._worker = CaptionWorker(
            self._run,
            self._config,
            engine,
            settings.engine,
            settings.part_size,
            settings.concurrency,
            gpus,
            _counters(name),
            combined_digest(files),
            settings.max_rejected,
        )
        arguments = (asyncio.get_running_loop(), settings.stall_seconds)
        threading.Thread(target=self._watch, args=arguments, name="watchdog", daemon=True).start()
        await self._worker.warm_up()
        claim_model(self._run, self._config, files)
        return loaded - started, time.monotonic() - loaded

    async def caption(self, shard: int) -> UnitResult:
        """Caption and commit one shard. If the engine dies, the process ends, and Ray restarts the actor."""
        try:
            return await self._worker.caption_shard(shard)
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


def _counters(captioner: str) -> Callable[[Row], None]:
    """Ray metrics per captioner. The ledger has the same figures for committed shards."""
    from ray.util import metrics

    kinds = ("lotlip_captions", "lotlip_rejections", "lotlip_caption_tokens")
    captions, rejections, tokens = (metrics.Counter(name, tag_keys=("captioner",)) for name in kinds)

    def count(row: Row) -> None:
        tags = {"captioner": captioner}
        (captions if row["error"] is None else rejections).inc(1, tags)
        if row["tokens"]:
            tokens.inc(row["tokens"], tags)

    return count
