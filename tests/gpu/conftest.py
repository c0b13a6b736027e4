"""Runs the GPU suite where there is a GPU, in the order of its sections, and writes its figures."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.availability import Availability, availability
from tests.gpu.results import DEFAULT_FILE, SECTIONS, Results

RESULTS = pytest.StashKey[Results]()


@cache
def _availability() -> Availability:
    return availability()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = Results()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": number for number, name in enumerate(SECTIONS)}
    folder = Path(__file__).parent
    own = [item for item in items if item.path.parent == folder]
    places = [number for number, item in enumerate(items) if item.path.parent == folder]
    own.sort(key=lambda item: order.get(item.path.name, -1))
    for place, item in zip(places, own, strict=True):
        items[place] = item


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("gpu"):
        return
    state = _availability()
    if state.action == "skip":
        pytest.skip(state.reason)
    if state.action == "fail":
        pytest.fail(state.reason, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if item.get_closest_marker("gpu"):
        reason = "" if report.passed else str(call.excinfo.value).strip()[-2000:] if call.excinfo else ""
        results = item.config.stash[RESULTS]
        results.add_test(f"{item.path.stem}::{item.name}", report.outcome, report.duration, reason)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if results.tests:
        path = results.write(Path(os.environ.get("GPU_RESULTS", DEFAULT_FILE)))
        terminalreporter.write_line(f"figures of the GPU suite: {os.path.relpath(path)}")
        terminalreporter.write_line(f"rows for docs/guides/gpu-sizing.md: python -m tests.gpu.report {path}")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The figures of the test's section: whatever the test puts in is written to the results."""
    section = request.path.stem.removeprefix("test_")
    if not request.node.get_closest_marker("gpu"):
        return {}
    return request.config.stash[RESULTS].section(section)
