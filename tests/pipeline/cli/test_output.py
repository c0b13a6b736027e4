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

from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import command
from lotlip_data.pipeline.cli.main import app
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


NORMAL = ["an info message", "a shard is done", "a warning", "the result"]


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
    assert [line.split(" ", 1)[1] for line in log.read_text().splitlines()] == NORMAL


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


def test_without_a_terminal_the_lines_per_shard_are_printed_and_no_bar() -> None:
    ended = CliRunner().invoke(make_app(work_with_a_bar), ["work"])
    assert [line for line in ended.output.splitlines() if line.startswith("shard")] == ["shard 0", "shard 1", "shard 2"]
    assert "3/3" not in ended.output
