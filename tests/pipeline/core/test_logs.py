"""No character of a host, a text or a server's message can control the terminal or the log file."""

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import command
from lotlip_data.pipeline.core.logs import printable
from lotlip_data.pipeline.core.outcome import Outcome, one_line

HOSTILE = "\x1b[31m\x1b]0;title\x07 \x9b1A \r\x08\x7f \u202eevil\u2066 \u200f\u2028 \ud800 é 日本 👨‍👩‍👧 ok"
HARMLESS = r"\x1b[31m\x1b]0;title\x07 \x9b1A \r\x08\x7f \u202eevil\u2066 \u200f\u2028 \ud800 é 日本 👨‍👩‍👧 ok"


def test_control_and_bidirectional_characters_are_shown_as_escapes() -> None:
    assert printable(HOSTILE) == HARMLESS
    assert printable("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot identify <_io.BytesIO object at 0x7f338019ee60>", "cannot identify <_io.BytesIO object>"),
        ("<function call at 0x7f12>: failed", "<function call>: failed"),
        ("read at 0x7f12 bytes", "read at 0x7f12 bytes"),
    ],
)
def test_addresses_of_objects_are_left_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(OSError(text)) == f"OSError: {shown}"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_command_prints_and_keeps_them_as_escapes(tmp_path: Path, as_json: bool) -> None:
    line = CommandLine(pretty_exceptions_enable=False)

    @line.command("work")
    def work() -> None:
        with command("work", as_json, str(tmp_path)) as console:
            logging.getLogger("lotlip_data.pipeline.example").warning(f"logged {HOSTILE}")
            console.print(f"printed {HOSTILE}")
            console.result({HOSTILE: 1})
            raise UserError(f"raised {HOSTILE}")

    @line.command("other")
    def other() -> None:
        """A second command, so that the name of the first one is needed."""

    (tmp_path / "manifest.yaml").write_text("name: x")
    ended = CliRunner().invoke(line, ["work"])
    lines = [f"logged {HARMLESS}", f"printed {HARMLESS}", f"error: raised {HARMLESS}"]
    assert (ended.stderr if as_json else ended.stdout).splitlines() == lines
    assert not as_json or json.loads(ended.stdout) == {HOSTILE: 1}
    assert "\x1b" not in ended.output and "\u202e" not in ended.output
    (log,) = (path for path in Path(Run.at(str(tmp_path)).url).rglob("*") if path.is_file() and path.suffix != ".yaml")
    assert [entry.split(" ", 1)[1] for entry in log.read_text().split("\n")[:-1]] == lines


def test_an_outcome_in_a_notebook_shows_them_as_escapes() -> None:
    assert repr(Outcome(True, lines=[HOSTILE])) == HARMLESS
