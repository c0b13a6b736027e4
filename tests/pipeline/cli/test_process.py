"""A command ends in order on SIGTERM as on Ctrl-C, and goes on where nobody can read its output."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import logging, sys, time
import typer
from lotlip_data.pipeline.cli.common import command

def main():
    with command("test", as_json="json" in sys.argv) as console:
        console.print("started")
        if "wait" in sys.argv:
            try:
                print("waiting", flush=True)
                time.sleep(60)
            finally:
                if "slow" in sys.argv:
                    print("winding down", flush=True)
                    time.sleep(60)
        for number in range(2000):
            console.print(f"line {number}")
            logging.getLogger("lotlip_data.x").warning(f"warning {number}")
        console.result({"a": 1})
        open(sys.argv[1], "w").write("done")

try:
    main()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def start(*arguments: str, **streams: object) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], text=True, **streams)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_command_with_one_line(number: int) -> None:
    process = start("none", "wait", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and "waiting\n" in iter(process.stdout.readline, "")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert output == "stopped. Committed work is kept; run the same command again to resume.\n"
    assert errors == "" and process.returncode == 130


def test_a_second_signal_ends_the_winding_down() -> None:
    process = start("none", "wait", "slow", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and "waiting\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "winding down\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert output.startswith("stopped. ") and errors == "" and process.returncode == 130


@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full >/dev/full", ">&-", ">&- 2>&-", "| head -1"])
def test_output_that_cannot_be_written_does_not_end_the_command(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    line = f"'{sys.executable}' command.py done {redirection}; echo ${{PIPESTATUS[0]}} >code"
    errors = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    assert (tmp_path / "done").read_text() == "done"
    assert (tmp_path / "code").read_text() == "0\n"
    assert "Error" not in errors and "Traceback" not in errors


def test_a_closed_stream_gives_its_number_to_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    subprocess.run(["bash", "-c", f"'{sys.executable}' {tmp_path}/command.py {tmp_path}/done >&-"], check=True)
    assert (tmp_path / "done").read_text() == "done"  # and not the lines of the command


def test_a_json_result_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start(str(tmp_path / "done"), "json", stdout=full, stderr=subprocess.PIPE)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "error: the result cannot be written to standard output ([Errno 28] No space left on device)" in errors


def test_other_code_sees_the_standard_streams(capfd: pytest.CaptureFixture[str]) -> None:
    from lotlip_data.pipeline.cli.process import lasting_streams

    before = sys.stdout, sys.stderr
    with lasting_streams():
        assert sys.stdout.encoding and not sys.stdout.isatty()
        print("a line")
        os.write(2, b"")
    assert (sys.stdout, sys.stderr) == before and capfd.readouterr().out == "a line\n"
