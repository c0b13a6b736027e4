"""For all tests: property tests have no deadline and fixed examples; `--unit` selects the tests of `make check`."""

import re
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell without job control starts jobs in the background with SIGINT ignored, and their children would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine may take its time, and examples are the same in each run.
settings.register_profile("untimed", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A test module that names one of these starts processes or servers, or draws figures, which takes seconds.
_NOT_UNIT = re.compile(
    r"\b(ray|\w*ray_tasks|run_tasks|vllm\w*|moto|subprocess|multiprocessing|fork|threading|selenium|\w*Server)\b"
    r"|\b(\w+_run|\w*run_fixture|pipeline\.study)\b"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--unit",
        action="store_true",
        help="Run only modules that start no process and no server, as `make check` does.",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("unit") or not collection_path.name.startswith("test_"):
        return None
    return True if _NOT_UNIT.search(collection_path.read_text(encoding="utf-8")) else None
