"""Stages in threads end as they do alone: with their result, with their error, or with Ctrl-C."""

import signal
import threading
import time
from contextvars import ContextVar

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.stage_threads import StageThreads, Stopped, pause, raise_if_stopped

SETTING: ContextVar[str] = ContextVar("setting", default="none")


def test_a_stage_that_fails_leaves_the_others_to_finish() -> None:

    def fail() -> str:
        raise UserError("no images here yet")

    def finish() -> str:
        while not threads.has_ended("download"):
            pause(0.01)
        return "captioned"

    with StageThreads[str]() as threads:
        threads.start("download", fail)
        threads.start("recaption", finish)
        results = threads.results()
    assert str(results["download"]) == "no images here yet" and results["recaption"] == "captioned"


def test_an_error_of_storage_or_cluster_stops_all_stages_and_is_raised() -> None:
    cleaned = threading.Event()

    def work() -> str:
        try:
            while True:
                pause(60)  # until it is stopped
        finally:
            cleaned.set()

    def fail() -> str:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), StageThreads[str]() as threads:
        threads.start("recaption", work)
        threads.start("download", fail)
        threads.results()
    assert cleaned.is_set() and threads.has_ended("recaption")


def test_a_signal_of_the_main_thread_stops_all_stages_and_lets_them_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, cleaned = threading.Event(), list[type[BaseException] | None]()
    wait = StageThreads._wait

    def work() -> None:
        try:
            while True:
                pause(60)
        except KeyboardInterrupt as interrupt:  # what a stage does at Ctrl-C, it does here
            cleaned.append(type(interrupt))
            raise

    def work_and_end_last() -> None:  # the main thread was waiting for this one when the signal came
        try:
            work()
        finally:
            while not threads.has_ended("recaption"):
                time.sleep(0.01)
            time.sleep(0.3)  # such as saving finished captions
            cleaned.append(None)

    def interrupt() -> None:
        waiting.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def wait_and_say_so(threads: StageThreads[None]) -> None:
        waiting.set()
        wait(threads)

    monkeypatch.setattr(StageThreads, "_wait", wait_and_say_so)
    with pytest.raises(KeyboardInterrupt), StageThreads[None]() as threads:
        threads.start("download", work_and_end_last)
        threads.start("recaption", work)
        threading.Thread(target=interrupt).start()
        threads.results()
    assert cleaned == [Stopped, Stopped, None]


def test_a_stage_sees_the_context_of_the_main_thread() -> None:
    with StageThreads[str]() as threads:
        token = SETTING.set("no bars")
        threads.start("download", SETTING.get)
        SETTING.reset(token)
        assert threads.results() == {"download": "no bars"}


def test_nothing_is_stopped_outside_of_threads() -> None:
    raise_if_stopped()
    pause(0)
