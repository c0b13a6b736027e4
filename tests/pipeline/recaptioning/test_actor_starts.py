"""Starts of engines: lost actors come back, a hung start ends, and waiting for a machine is no failure.

The actors are real. Their engines are not: files in the run's folder choose what happens.
"""

import asyncio
import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from lotlip_data.captioners.base import Capacity, CaptionerConfig, EngineUnreachable
from lotlip_data.captioners.load_errors import EngineStartError, explained
from lotlip_data.captioners.sizing import ReadingDefaults
from lotlip_data.manifests.checkpoints.hub import HubUnreachable
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning import actor_pool, actor_slots
from lotlip_data.pipeline.recaptioning.actor import (
    MAX_FAILED_STARTS,
    REPEATED_STARTS,
    StartFailed,
    StartReport,
    _tries,
)
from lotlip_data.pipeline.recaptioning.actor_pool import ActorPool, ActorSlot, FailedUnit, run_pools
from lotlip_data.pipeline.recaptioning.config import PoolSettings, resolve_captioners
from lotlip_data.pipeline.recaptioning.results import UnitResult
from lotlip_data.pipeline.recaptioning.shard_text import ShardOutcome


class FakeActor:
    """Logs its starts. The first start finds no file; later ones do what a file says: `fail` always, `fail-once`."""

    def __init__(self, folder: str, config: Any, settings: Any, texts: Any) -> None:
        self._folder = Path(folder)

    async def placed(self) -> None:
        pass

    async def start(self) -> StartReport:
        with open(self._folder / "starts", "a") as log:
            log.write(f"{os.getpid()}\n")
        if self._take("hang-once"):
            await asyncio.sleep(10_000)
        if not self._take("first") and (self._take("fail-once") or (self._folder / "fail").exists()):
            raise StartFailed("no GPU", "", 1)
        return StartReport(
            "model", "vllm", "host", 0.0, 1.0, 2.0, Capacity("bfloat16", "H100", 128, 98_304), ReadingDefaults(4, 64)
        )

    async def caption(self, shard: int, texts: Any) -> ShardOutcome:
        """Wait until there were as many starts as the file `needed` says."""
        needed = int((self._folder / "needed").read_text())
        while len((self._folder / "starts").read_text().split()) < needed:
            await asyncio.sleep(0.05)
        refused = {name: "it fails" for name in texts if (self._folder / f"refuse-{name}").exists()}
        with open(self._folder / "asked", "a") as log:
            log.writelines(f"{name} {shard}\n" for name in texts)
        done = [UnitResult(name, shard, 1, 1, 0, True, 1) for name in texts if name not in refused]
        return ShardOutcome(done, refused)

    async def drain(self) -> None:
        pass

    def _take(self, name: str) -> bool:
        try:
            (self._folder / name).unlink()
        except FileNotFoundError:
            return False
        return True


@pytest.fixture
def make_pool(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ActorPool]:
    """`make_pool(files, needed, **settings)`: a pool of fake actors with 12 units."""
    monkeypatch.setattr(actor_pool, "CaptionActor", FakeActor)
    monkeypatch.setattr(actor_pool, "REPLACE_SECONDS", 0.0)

    def make(files: tuple[str, ...], needed: int, **settings: Any) -> ActorPool:
        for name in files:
            (tmp_path / name).touch()
        (tmp_path / "needed").write_text(str(needed))
        (job,) = resolve_captioners(["tiny-llava"])
        pool = PoolSettings(num_cpus=0, num_gpus=0, **settings)
        return ActorPool(Run(str(tmp_path)), job.config, pool, dict.fromkeys(range(12), ("tiny-llava",)))

    return make


def work_off(pool: ActorPool) -> tuple[list[int], list[FailedUnit], int]:
    """The finished shards, the failed units and the number of starts."""
    done: list[int] = []
    failed: list[FailedUnit] = []
    run_pools([pool], lambda name, results: done.extend(result.shard for result in results), failed.append)
    return sorted(done), failed, len(Path(pool.run.url, "starts").read_text().split())


@pytest.mark.parametrize(
    ("cause", "tries"),
    [
        (OSError("/models/mine does not appear to have a file named tokenizer.json"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file", "/models/mine/model.safetensors"), REPEATED_STARTS),
        (PermissionError(errno.EACCES, "Permission denied", "/models/mine/config.json"), REPEATED_STARTS),
        (RuntimeError("CUDA error"), REPEATED_STARTS),
        (ValueError("a setting"), 1),
        (ConnectionResetError(errno.ECONNRESET, "reset"), MAX_FAILED_STARTS),
        (EngineUnreachable("http://host: no answer"), MAX_FAILED_STARTS),
        (HubUnreachable("m: cannot be reached", "check the network"), MAX_FAILED_STARTS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_only_a_network_or_a_server_is_tried_five_times(cause: Exception, tries: int) -> None:
    """A folder that lacks a file is no network that may come back."""
    config = CaptionerConfig(name="mine", kind="llava", model="/models/mine")
    with pytest.raises((UserError, EngineStartError)) as caught, explained(config):
        raise cause
    assert _tries(caught.value) == tries


def test_what_a_pool_asks_the_cluster_for_is_shown(
    make_pool: Callable[..., ActorPool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    work_off(make_pool((), 1, max_actors=2))
    assert re.search(r"tiny-llava: asks for 2 actors; the cluster has .*2 CPU", caplog.text)


def test_a_pools_wish_has_the_amounts_of_each_actor(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool((), 1)
    assert pool.wish == "1 actor"
    pool.settings = PoolSettings(
        num_gpus=0.5, num_cpus=8, max_actors=64, accelerator_type="H100", resources={"disk": 2}, labels={"zone": "a"}
    )
    assert pool.wish == (
        "12 actors with 0.5 GPU, 8 CPU, 2 disk, a GPU of type H100, the label zone=a each"  # no more than units
    )
    pool.stop_reason = "no machine has 8 CPU"
    assert pool.wish == "no actor"


def test_an_actor_whose_engine_did_not_start_is_asked_for_again_while_another_works(
    make_pool: Callable[..., ActorPool],
) -> None:
    done, failed, starts = work_off(make_pool(("first", "fail-once"), 3, max_actors=2))
    assert (done, failed, starts) == (list(range(12)), [], 3)


@pytest.mark.slow
def test_it_is_asked_for_again_a_limited_number_of_times(make_pool: Callable[..., ActorPool]) -> None:
    most = 2 + actor_pool.MAX_REPLACEMENTS
    done, failed, starts = work_off(make_pool(("first", "fail"), most, max_actors=2))
    assert (done, failed, starts) == (list(range(12)), [], most)


@pytest.mark.slow
def test_a_fault_of_all_actors_ends_the_pool_without_replacements(make_pool: Callable[..., ActorPool]) -> None:
    done, (failed,), starts = work_off(make_pool(("fail",), 1, max_actors=2))
    assert done == [] and starts == 2 and "no GPU" in failed.reason


@pytest.mark.slow
def test_a_start_that_hangs_ends_at_its_deadline_and_is_tried_in_a_new_process(
    make_pool: Callable[..., ActorPool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pool = make_pool(("hang-once",), 1, max_actors=1)
    hung = False

    def expire() -> None:
        """Move the deadline to the past as soon as the engine hangs."""
        nonlocal hung
        if pool.starting and not hung and Path(pool.run.url, "starts").exists():
            hung = True
            pool.slots[0].deadline = time.monotonic()

    done: list[int] = []
    run_pools([pool], lambda name, results: done.extend(result.shard for result in results), lambda unit: None, expire)
    processes = Path(pool.run.url, "starts").read_text().split()
    assert sorted(done) == list(range(12)) and len(set(processes)) == 2
    assert "did not start within 3,600 s (`start_seconds`)" in caplog.text
    assert (
        "engine ready: started in 1.0 s, first image in 2.0 s; model, engine vllm, bfloat16 on H100, KV cache of "
        "98,304 tokens, up to 128 captions at a time; 4 decoding threads, 64 images read at a time" in caplog.text
    )


def test_waiting_for_ray_to_restart_an_actor_is_no_lost_start(
    make_pool: Callable[..., ActorPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits for a machine with room, which may take longer than any number of tries."""

    def unavailable(reference: Any) -> None:
        raise ActorUnavailableError("it is restarting", b"0" * 16)

    monkeypatch.setattr(actor_pool.ray, "get", unavailable)
    pool = make_pool((), 0)
    slot = ActorSlot(None)
    pool.slots.append(slot)
    for number in range(5 * actor_pool.MAX_LOST_STARTS):
        pool.placing[number] = slot
        assert pool.collect(number) == []
    assert pool.slots == [slot] and slot.lost_starts == 0 and slot.start_at is not None and not pool.stop_reason


def test_a_text_that_is_refused_for_many_shards_in_a_row_is_left_out_and_the_others_go_on(
    make_pool: Callable[..., ActorPool],
) -> None:
    pool = make_pool(("refuse-qwen_tags",), 1)
    pool.texts |= dict.fromkeys(range(30), ("qwen_long", "qwen_tags"))
    pool.queue.extend(range(12, 30))
    done, failed, _ = work_off(pool)
    assert done == list(range(30))
    assert {(unit.captioner, unit.texts) for unit in failed} == {("qwen_tags", ("qwen_tags",))}
    *refused, rest = sorted(failed, key=lambda unit: unit.shard is None)
    assert {unit.reason for unit in refused} == {"it fails"} and rest.shard is None
    left = 30 - len(refused)
    assert rest.reason == f"{left} shards not captioned: 10 shards in a row failed, the last one with: it fails"
    asked = Path(pool.run.url, "asked").read_text()
    assert asked.count("qwen_long") == 30 and asked.count("qwen_tags") == len(refused) < 15


def test_a_pool_whose_every_text_is_refused_for_many_shards_in_a_row_stops(
    make_pool: Callable[..., ActorPool],
) -> None:
    pool = make_pool(("refuse-a", "refuse-b"), 1)
    pool.texts |= dict.fromkeys(range(30), ("a", "b"))
    pool.queue.extend(range(12, 30))
    done, failed, _ = work_off(pool)
    assert done == []
    # The last text is the pool's own failure if no other unit is running when it stops.
    assert sorted(text for unit in failed if unit.shard is None for text in unit.texts) == ["a", "b"]
    assert len(Path(pool.run.url, "asked").read_text().split("\n")) < 30


def work_off_arrivals(pool: ActorPool, arrivals: list[Callable[[], bool]]) -> tuple[list[int], list[FailedUnit]]:
    """Run a pool without units. One shard comes each time that the next condition is true, and then no more."""
    pool.texts.clear()
    pool.queue.clear()
    pool.more, pool.expected, pool.text_names = True, len(arrivals), ["tiny-llava"]
    done: list[int] = []
    failed: list[FailedUnit] = []
    conditions = list(arrivals)

    def arrive() -> None:
        if conditions and conditions[0]():
            conditions.pop(0)
            shard = len(arrivals) - len(conditions) - 1
            pool.extend({shard: ("tiny-llava",)}, len(conditions), bool(conditions))

    run_pools([pool], lambda name, results: done.extend(result.shard for result in results), failed.append, arrive)
    return done, failed


def test_an_engine_starts_before_the_first_shard_comes_and_waits_for_further_ones(
    make_pool: Callable[..., ActorPool],
) -> None:
    pool = make_pool((), 1, max_actors=1)

    def is_idle() -> bool:
        return any(slot.ready for slot in pool.slots) and not pool.running

    assert work_off_arrivals(pool, [is_idle, is_idle, is_idle]) == ([0, 1, 2], [])
    assert len(Path(pool.run.url, "starts").read_text().split()) == 1 and not pool.slots


def test_an_actor_that_was_idle_for_long_is_released_and_asked_for_again_when_a_shard_comes(
    make_pool: Callable[..., ActorPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_slots, "IDLE_SECONDS", 0.0)
    pool = make_pool((), 1, max_actors=1)

    def has_rested() -> bool:
        return bool(pool.idle.released) and not pool.slots

    assert work_off_arrivals(pool, [has_rested, has_rested]) == ([0, 1], [])
    assert len(Path(pool.run.url, "starts").read_text().split()) == 3


def test_a_pool_whose_engine_does_not_start_does_not_wait_for_shards(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(("fail",), 1, max_actors=1)
    done, (failed,) = work_off_arrivals(pool, [lambda: False])
    assert done == [] and failed.shard is None and failed.texts == ("tiny-llava",)
    assert failed.reason == "0 shards, and those that come later, not captioned: no GPU"
