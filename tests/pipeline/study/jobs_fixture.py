"""Jobs for the tests of the study's scheduler, in a module that its worker processes can import.

As a program, it runs one job that waits: `python -m tests.pipeline.study.jobs_fixture STUDY`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lotlip_data.manifests.errors import UserError


@dataclass(frozen=True)
class FakeJob:
    """Appends its name, process id and working directory to the file `started`, then behaves as its `outcome` says.

    Outcomes: "done" creates the file NAME.done; "waits" does so once the file `go` exists; "fails" raises a UserError;
    "breaks" raises an unexpected error; "dies" ends the process.
    """

    name: str
    outcome: str = "done"

    def prerequisites(self) -> tuple[()]:
        return ()

    def is_done(self, study: str, design: object) -> bool:
        return Path(study, f"{self.name}.done").exists()

    def run(self, study: str, design: object) -> None:
        with Path(study, "started").open("a") as file:
            file.write(f"{self.name} {os.getpid()} {Path.cwd()} {study}\n")
        if self.outcome == "fails":
            raise UserError("no good")
        if self.outcome == "breaks":
            1 / 0  # noqa: B018 - an unexpected error
        if self.outcome == "dies":
            os._exit(7)
        while self.outcome == "waits" and not Path(study, "go").exists():
            os.sched_yield()
        Path(study, f"{self.name}.done").touch(exist_ok=False)

    def __str__(self) -> str:
        return self.name


if __name__ == "__main__":
    from lotlip_data.pipeline.study.scheduler import run_jobs

    run_jobs(sys.argv[1], None, [FakeJob("a", "waits")], 1, None)
