"""Tasks for the tests of the study's runner: they must be importable in the processes that it starts.

As a program, it runs one that waits: `python -m tests.pipeline.study.jobs_fixture STUDY`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lotlip_data.manifests.errors import UserError


@dataclass(frozen=True)
class Told:
    """Appends its name and process to `begun`; then fails, breaks, dies, or makes its marker, now or when `go` is."""

    name: str
    fate: str = "done"

    def is_done(self, study: str, design: object) -> bool:
        return Path(study, f"{self.name}.done").exists()

    def do(self, study: str, design: object) -> None:
        with Path(study, "begun").open("a") as file:
            file.write(f"{self.name} {os.getpid()}\n")
        if self.fate == "fails":
            raise UserError("no good")
        if self.fate == "breaks":
            1 / 0  # noqa: B018 - an error that nobody foresaw
        if self.fate == "dies":
            os._exit(7)
        while self.fate == "waits" and not Path(study, "go").exists():
            os.sched_yield()
        Path(study, f"{self.name}.done").touch(exist_ok=False)

    def __str__(self) -> str:
        return self.name


if __name__ == "__main__":
    from lotlip_data.pipeline.study.experiments import Design
    from lotlip_data.pipeline.study.scheduler import run

    run(sys.argv[1], Design(), [Told("a", "waits")], 1, None)
