"""The commands of the reproduction study."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, command


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(study)
    app.command(name="study-page")(study_page)


Seeds = Annotated[int, typer.Option(min=3, max=10, help="Seeds of a row.")]
SEEDS = 4
"""As many as fit into four hours: the interval of three is half as wide again."""


def study(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="Where it runs; a folder on this machine.")] = (
        "runs/study"
    ),
    out: Annotated[str | None, typer.Option(help="Folder for the page, study/index.md. Default: DIR.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="Stop after so long; the next start goes on.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A table or figure, such as table-3 or figure-4; again for another.")
    ] = None,
    seeds: Seeds = SEEDS,
    processes: Annotated[int, typer.Option(min=1, help="Trainings side by side, of one thread each.")] = 2,
    json: Json = False,
) -> None:
    """The paper's tables and figures, small, on the offline world: four hours on two cores, in any number of goes.

    Example: lotlip-data study runs/study --minutes 30 --only table-2
    """
    with command("study", json) as console:
        from lotlip_data.pipeline.study.main import run_study

        summary = run_study(folder, out or folder, minutes, only or (), seeds, processes)
        console.result({"done": summary.done, "left": summary.left, "failed": list(summary.failed)})
        for line in summary.failed:
            console.error(line)
        if summary.failed:
            raise typer.Exit(FAILED)


def study_page(
    results: Annotated[str, typer.Argument(help="A results.jsonl that `study` wrote.")],
    out: Annotated[str, typer.Argument(help="Folder for the page, study/index.md.")],
    seeds: Seeds = SEEDS,
) -> None:
    """The study's page again, from its results.

    Example: lotlip-data study-page docs/study/results.jsonl docs
    """
    with command("study-page", False):
        from lotlip_data.pipeline.study.main import rebuild_page

        rebuild_page(results, out, seeds)
