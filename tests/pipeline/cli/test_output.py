"""What a command prints: --quiet, --verbose, --json, progress bars, and the copy in the run's logs."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests import progress
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import command, finish
from lotlip_data.pipeline.cli.console import SCREEN_LINES
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core.outcome import Outcome
from tests.pipeline import run_fixture as fake_run

logger = logging.getLogger("lotlip_data.pipeline.example")


def make_app(body: Callable[[], None] = lambda: None, run: str | None = None) -> CommandLine:
    """A command line of one command, `work`, which logs at four levels and prints a result."""
    line = CommandLine(pretty_exceptions_enable=False)

    @line.command("work")
    def work(json: bool = False) -> None:
        with command("work", json, run) as console:
            logger.debug("a debug message")
            logger.info("an info message")
            logger.info("a shard is done", extra=SHOWN_BY_BAR)
            logger.warning("a warning")
            body()
            console.print("the result")
            console.result({"figure": 1})

    @line.command("other")
    def other() -> None:
        """A second command, so that the name of the first one is needed."""

    return line


def output(*arguments: str) -> list[str]:
    ended = CliRunner().invoke(make_app(), list(arguments))
    assert ended.exit_code == 0, ended.output
    return ended.output.splitlines()


NORMAL = ["an info message", "a warning", "the result"]
KEPT = ["an info message", "a shard is done", "a warning", "the result"]


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_prints_warnings_and_results_before_and_after_the_command(option: str) -> None:
    assert output("work") == NORMAL
    assert output(option, "work") == output("work", option) == ["a warning", "the result"]
    assert output("work") == NORMAL  # a call does not change the next one


@pytest.mark.parametrize("option", ["-v", "--verbose"])
def test_verbose_prints_debug_messages_with_time_and_module(option: str) -> None:
    for lines in (output(option, "work"), output("work", option)):
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} DEBUG lotlip_data\.pipeline\.example: a debug message", lines[0]
        )
        assert lines[-1] == "the result" and len(lines) == 5


def test_quiet_and_verbose_together_are_an_invalid_argument() -> None:
    ended = CliRunner().invoke(make_app(), ["work", "-q", "-v"])
    assert ended.exit_code == 2 and "give either --quiet or --verbose" in ended.output


def test_with_json_only_the_figures_are_on_standard_output() -> None:
    ended = CliRunner().invoke(make_app(), ["work", "--json"])
    assert json.loads(ended.stdout) == {"figure": 1}
    assert ended.stderr.splitlines() == NORMAL


@pytest.mark.parametrize("option", ["-q", "-v", "--json"])
def test_the_log_file_has_every_message_from_info_in_each_case(tmp_path: Path, option: str) -> None:
    run = fake_run.make(tmp_path, shards=1, images=1, writers=()).run
    assert CliRunner().invoke(make_app(run=run.url), ["work", option]).exit_code == 0
    (log,) = tmp_path.glob("logs/*/log.txt")
    assert [line.split(" ", 1)[1] for line in log.read_text().splitlines()] == KEPT


def test_an_error_is_printed_when_quiet(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["-q", "status", str(tmp_path / "nope")])
    assert ended.exit_code == 2 and ended.output.startswith("error: ") and ended.output.count("\n") == 1


SHOWS_A_BAR = """
import sys
from tests.pipeline.cli.test_output import make_app, work_with_a_bar
sys.exit(make_app(work_with_a_bar)(sys.argv[1:]))
"""


def work_with_a_bar() -> None:
    with progress_bar("example", 3, "shard") as bar:
        for number in range(3):
            logger.info(f"shard {number}", extra=SHOWN_BY_BAR)
            bar.update()


def output_of_a_terminal(*arguments: str) -> str:
    """What a program prints whose standard output and standard error are a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100"}
    command_line = [sys.executable, "-c", SHOWS_A_BAR, *arguments]
    with subprocess.Popen(command_line, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the program has closed the terminal
                break
            if not part:
                break
            printed += part
        assert process.wait() == 0, printed
    os.close(ours)
    return printed.decode()


def test_a_terminal_shows_a_bar_in_place_of_the_lines_per_shard() -> None:
    printed = output_of_a_terminal("work")
    assert "example" in printed and "3/3" in printed
    assert "shard 1" not in printed and "an info message" in printed


@pytest.mark.parametrize("option", ["-q", "--json"])
def test_no_bar_is_drawn_when_quiet_or_for_json(option: str) -> None:
    assert "3/3" not in output_of_a_terminal("work", option)


def test_without_a_terminal_lines_stand_for_the_bar_and_the_log_file_has_the_lines_per_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    run = fake_run.make(tmp_path, shards=1, images=1, writers=()).run
    lines = CliRunner().invoke(make_app(work_with_a_bar, run.url), ["work"]).output.splitlines()
    assert [line.split(" (")[0] for line in lines if line.startswith("example")] == [
        f"example: {done} of 3 shards" for done in (1, 2, 3)
    ]
    assert not any(line.startswith("shard") or "3/3" in line for line in lines)
    (log,) = tmp_path.glob("logs/*/log.txt")
    assert "shard 2" in log.read_text() and "example" not in log.read_text()


def fail_many_times() -> None:
    for number in range(10_000):
        logger.warning(f"shard {number:05}: HTTP 503 after {number} s")
    logger.warning("shard 00001: the disk is full")


def test_warnings_that_differ_in_numbers_only_are_shown_once(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path, shards=1, images=1, writers=()).run
    lines = CliRunner().invoke(make_app(fail_many_times, run.url), ["work"]).output.splitlines()
    assert [line for line in lines if line.startswith("shard")] == [
        "shard 00000: HTTP 503 after 0 s",
        "shard 00001: the disk is full",
    ]
    assert len(lines) < 10 and any("further lines" in line for line in lines)
    (log,) = tmp_path.glob("logs/*/log.txt")
    assert log.read_text().count("HTTP 503") == 10_000


def test_a_failure_that_the_log_has_shown_is_not_printed_again_and_the_others_are_one_line() -> None:
    def fail() -> None:
        for number in range(3):
            logger.warning(f"shard {number}: no space left")
        logger.warning("llava: shard 7 failed: out of memory")

    line = make_app()

    @line.command("failing")
    def failing() -> None:
        with command("failing", False) as console:
            fail()
            failed = [f"download: shard {number}: no space left" for number in range(3)]
            finish(console, Outcome(True, [*failed, "recaption: llava: shard 7 failed: out of memory"], stage="run"))

    ended = CliRunner().invoke(line, ["failing"])
    assert ended.exit_code == 1
    assert ended.output.count("out of memory") == 1
    assert "run: 4 failed\n  download: shard 0: no space left (and 2 more lines like this)" in ended.output


def test_a_failure_that_has_left_the_screen_stands_in_the_summary_again() -> None:
    line = make_app()

    @line.command("failing")
    def failing() -> None:
        with command("failing", False) as console:
            logger.warning("llava: out of memory")
            for word in ("one", "two", "three", "four", "five") * SCREEN_LINES:
                console.print(f"shard {word} is written")
            finish(console, Outcome(True, ["recaption: llava: out of memory"], stage="run"))

    assert CliRunner().invoke(line, ["failing"]).output.endswith("run: 1 failed\n  recaption: llava: out of memory\n")
