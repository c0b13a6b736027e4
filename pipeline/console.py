"""What a command tells its user, on the screen and in a file of the run's `logs/`."""

import json
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from lotlip_data.manifests import storage
from lotlip_data.manifests.layout import Run


class Console:
    """Prints lines and keeps them; `save` puts them into one folder of the run's logs.

    With `json_output`, the lines go to standard error and the result alone to standard output. A `silent` one, of a
    process beside the first, tells errors alone.
    """

    def __init__(self, command: str, json_output: bool = False, silent: bool = False) -> None:
        self._silent = silent
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{command}-{os.getpid()}"
        self._lines: list[str] = []
        self._json = json_output

    def say(self, line: str = "") -> None:
        if self._silent:
            return
        self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")
        out = sys.stderr if self._json else sys.stdout
        tqdm.write(line, file=out)  # above a progress bar, where there is one
        out.flush()

    def error(self, line: str) -> None:
        """Says what went wrong, whichever process it went wrong in."""
        self._silent = False
        self.say(f"error: {line}")

    def result(self, value: dict[str, Any]) -> None:
        """The command's figures, printed only where a script asked for them."""
        if self._json and not self._silent:
            print(json.dumps(value, indent=1, default=str), flush=True)

    def save(self, run: Run) -> None:
        if self._lines and storage.exists(run.manifest):
            text = "\n".join(self._lines) + "\n"
            storage.replace(storage.join(run.logs, self._name, "log.txt"), text.encode())
