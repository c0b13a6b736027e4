"""The cause of a failed start is found in the output of the engine's process."""

import os
import subprocess
import sys

import pytest

from lotlip_data.captioners.engines.process_output import ProcessOutput, root_cause

CORE = "(EngineCore pid=7) ERROR 11-29 18:10:00 [core.py:1000]"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", None),
        ("INFO: all is well\n", None),
        (
            f"{CORE} EngineCore failed to start.\n{CORE} Traceback (most recent call last):\n"
            f'{CORE}   File "llava.py", line 7, in load\n{CORE} ValueError: There is no module named x.\n'
            "Traceback (most recent call last):\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            "ValueError: There is no module named x.",
        ),
        (
            "(EngineCore pid=7) Process EngineCore:\n(EngineCore pid=7) Traceback (most recent call last):\n"
            '(EngineCore pid=7)   File "a.py", line 1, in f\n'
            "(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory.\n(EngineCore pid=7) Tried 2 GiB.\n",
            "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB.",
        ),
        (
            "Traceback (most recent call last):\n  x\nKeyError: 'a'\n\nDuring handling of the above exception, another "
            "exception occurred:\n\nTraceback (most recent call last):\n  y\nAssertionError\n",
            "AssertionError",
        ),
    ],
)
def test_the_exception_that_ended_a_process(text: str, cause: str | None) -> None:
    assert root_cause(text) == cause


def test_the_output_of_a_started_process_is_kept_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('to standard output'); raise ValueError('the cause')"
    with ProcessOutput() as output:
        subprocess.run([sys.executable, "-c", code], check=False)
    os.write(1, b"afterwards\n")
    text = output.text()
    assert root_cause(text) == "ValueError: the cause" and "to standard output" in text
    shown = capfd.readouterr()
    assert shown.out == "afterwards\n" and "the cause" in shown.err


def test_a_process_that_goes_on_writing_does_not_block_and_only_the_end_is_kept() -> None:
    code = "import os\nfor n in range(20_000): os.write(1, b'%08d' % n + b'x' * 92 + b'\\n')\nos.write(1, b'last')"
    with ProcessOutput() as output:
        process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(60) == 0
    text = output.text(seconds=60)
    assert text.endswith("last") and len(text) < 1 << 20
