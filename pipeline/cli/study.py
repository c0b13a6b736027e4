"""The commands of the reproduction study."""

from typing import TYPE_CHECKING, Annotated

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, command
from lotlip_data.pipeline.cli.console import Console

if TYPE_CHECKING:
    from lotlip_data.pipeline.study.scheduler import RunSummary

Minutes = Annotated[
    float | None,
    typer.Option(min=0, max=1e6, help="Minutes after which to stop; the next call resumes. Default: no limit."),
]
Processes = Annotated[int, typer.Option(min=1, help="Number of trainings at a time, of one thread each.")]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=3, max=50, help="Number of seeds of every arm. Default: those of the power calculation; with `--pilot`, 3."
    ),
]
Pilot = Annotated[
    bool, typer.Option("--pilot", help="Development seeds; the page is study/power.md, the power calculation.")
]

Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="FILE",
        help="A results.jsonl or, with `--pilot`, pilots.jsonl, such as another machine's; its trainings do not run "
        "again (repeatable).",
    ),
]


def study(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="The study's folder on this machine.")] = "runs/study",
    out: Annotated[
        str | None, typer.Option(help="Folder for the page, study/index.md. Default: the study's folder.")
    ] = None,
    minutes: Minutes = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ARM", help="Arm to train, such as lotlip (repeatable). Default: all.")
    ] = None,
    seeds: Seeds = None,
    processes: Processes = 2,
    pilot: Pilot = False,
    imports: Imports = None,
    json: Json = False,
) -> None:
    """Test the paper's claims, small.

    Takes about three hours on two cores, on synthetic scenes. It can be stopped at any time; the same command
    resumes it.

    Example: lotlip-data study runs/study --out docs --minutes 30
    """
    with command("study", json) as console:
        from lotlip_data.pipeline.study.main import run_study

        progress = run_study(folder, out or folder, minutes, only or (), seeds, processes, pilot, imports or ())
        _finish(console, progress)


def study_page(
    results: Annotated[str, typer.Argument(help="A results.jsonl or, with `--pilot`, pilots.jsonl of `study`.")],
    out: Annotated[str, typer.Argument(help="Folder for the page, study/index.md.")],
    seeds: Seeds = None,
    pilot: Pilot = False,
) -> None:
    """Write the page of a study again, from its results.

    Example: lotlip-data study-page docs/study/results.jsonl docs
    """
    with command("study-page", False):
        from lotlip_data.pipeline.study.main import rebuild_page

        rebuild_page(results, out, seeds, pilot)


SCORES_SEEDS = 8


def study_scores(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="The study's folder on this machine.")] = "runs/scores",
    out: Annotated[
        str | None, typer.Option(help="Folder for the page, study/scores.md. Default: the study's folder.")
    ] = None,
    minutes: Minutes = None,
    seeds: Annotated[int, typer.Option(min=3, max=10, help="Number of seeds.")] = SCORES_SEEDS,
    processes: Processes = 2,
    results: Annotated[
        str | None, typer.Option(help="Run nothing; write the page from this scores.jsonl of an earlier call.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure whether scores find wrong captions, and help.

    On synthetic scenes with stated errors of captioners.

    It can be stopped at any time; the same command resumes it.

    Example: lotlip-data study-scores runs/scores --minutes 30
    """
    with command("study-scores", json) as console:
        from lotlip_data.pipeline.study.scores.main import rebuild_scores_page, run_scores_study

        if results is not None:
            rebuild_scores_page(results, out or folder, seeds)
            console.result({"done": 0, "left": 0, "failed": []})
            return
        progress = run_scores_study(folder, out or folder, minutes, seeds, processes)
        _finish(console, progress)


def _finish(console: Console, progress: "RunSummary") -> None:
    """Print what a study has done. Exits with FAILED if a training failed."""
    console.result({"done": progress.done, "left": progress.left, "failed": list(progress.failed)})
    for line in progress.failed:
        console.error(line)
    if progress.failed:
        raise typer.Exit(FAILED)
