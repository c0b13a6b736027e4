"""The commands whose results are pages."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, RunFolder, command


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(report)
    app.command()(view)


def report(
    run: RunFolder,
    out: Annotated[str | None, typer.Option(help="The file to write. Default: RUN/report.html.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU for an hour, for the cost so far.")] = None,
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
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.dataset.stats import dataset_stats
        from lotlip_data.pipeline.reporting.html import render_html
        from lotlip_data.pipeline.reporting.report import build_report

        at = Run.at(run)
        page = out or at.report
        if storage.is_folder(page):
            raise UserError(f"{page}: is a folder; name the file that is to be written")
        found = build_report(at, price)
        counted = None
        try:
            counted = dataset_stats(at) if stats and found["dataset"] else None
        except UserError as error:
            found["problems"].append(str(error))
        storage.replace(page, render_html(found, counted).encode())
        for problem in found["problems"]:
            console.error(problem)
        console.print(f"report: {page}")
        console.result(found)
        if found["problems"]:
            raise typer.Exit(FAILED)


def view(
    run: RunFolder,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help="A trained model's folder, such as RUN/train/lotlip/model, to search and to draw maps with; again for "
            "another beside it.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On this machine's loopback; 0: any that is free.")
    ] = 8765,
) -> None:
    """A local web page over a run: its dataset, what is in quarantine, and what trained models make of it.

    It can be reached from this machine alone; from another one: ssh -L 8765:localhost:8765 THIS_MACHINE.

    Example: lotlip-data view runs/demo --checkpoint runs/demo/train/lit/model --checkpoint runs/demo/train/lotlip/model
    """
    with command("view", False):
        from lotlip_data.manifests import storage
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.viewer.app import View, create_app
        from lotlip_data.pipeline.viewer.server import listen, serve

        at = Run.at(run)
        if not any(map(storage.exists, (at.manifest, at.plan, at.dataset))):
            raise UserError(f"{at.url}: there is no run; name the folder that `lotlip-data download` filled")
        with listen(port) as listening:  # a taken port is told before models are loaded
            models = None
            if checkpoint:
                from lotlip_data.pipeline.viewer.models import Models

                models = Models(checkpoint)
            serve(create_app(View(at, models)), listening)
