"""The commands whose results are pages."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli_command import Json, RunFolder, command


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(report)


def report(
    run: RunFolder,
    out: Annotated[str | None, typer.Option(help="The file to write. Default: RUN/report.html.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of an hour of one actor, for the cost so far.")] = None,
    stats: Annotated[
        bool, typer.Option(help="Count the whole dataset for Table 6; on a large one that takes long.")
    ] = True,
    json: Json = False,
) -> None:
    """One self-contained page about a run: what was asked, fetched, failed and why, captioned, left out, and its cost.

    Example: lotlip-data report runs/mine --price 2.5
    """
    with command("report", json) as console:
        from lotlip_data.manifests import storage
        from lotlip_data.manifests.layout import Run
        from lotlip_data.pipeline.report import figures
        from lotlip_data.pipeline.report_page import render
        from lotlip_data.pipeline.stats import dataset_stats

        at = Run.at(run)
        found = figures(at, price)
        counted = dataset_stats(at) if stats and found["dataset"] else None
        page = out or storage.join(at.url, "report.html")
        storage.replace(page, render(found, counted).encode())
        console.say(f"report: {page}")
        console.result(found)
