"""The commands that show a run: its progress, its dataset, its report, and the viewer."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, RunFolder, command
from lotlip_data.pipeline.cli.console import redrawing


def status(
    run: RunFolder,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show the status again and again until Ctrl-C."),
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Interval of --watch, in seconds.")] = 10.0,
    failures: Annotated[
        bool,
        typer.Option("--failures", help="Show download failures by reason and host. Reads one file per shard."),
    ] = False,
    json: Json = False,
) -> None:
    """Show the progress and speed of a run, on any machine.

    Example: lotlip-data status s3://bucket/run --watch
    """
    with command("status", json) as console:
        import time

        from lotlip_data.pipeline import inspection
        from lotlip_data.pipeline.core.outcome import one_line

        with redrawing(watch and not json) as show:
            lines: list[str] = []
            while True:
                try:
                    current = inspection.status(run, failures=failures)
                except OSError as error:  # a storage that may answer again
                    if not watch:
                        raise
                    show(console, [*lines, "", f"the run cannot be read now: {one_line(error)}"])
                else:
                    lines = current.lines
                    console.result(current.figures)
                    show(console, lines)
                if not watch:
                    break
                time.sleep(every)


LabelFile = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="CSV or Parquet file of labels: `uid`, `correct` (0 or 1), and of texts `captioner` and `sub_caption` "
        "(counted from 0). Compares each score with them.",
    ),
]


def stats(run: RunFolder, labels: LabelFile = None, json: Json = False) -> None:
    """Count the dataset's images, texts, tokens and scores.

    These are the figures of the paper's Table 6, and the distribution of each score.

    Example: lotlip-data stats runs/mine --labels labels.csv
    """
    with command("stats", json) as console:
        from lotlip_data.pipeline import inspection

        counts = inspection.stats(run, labels=labels)
        console.result(counts.figures)
        for line in counts.lines:
            console.print(line)


def verify(run: RunFolder, json: Json = False) -> None:
    """Find damaged, missing and foreign files of a run.

    Reads lists, images, captions, dataset, features and models, and compares each file with its recorded sha256.

    Example: lotlip-data verify runs/mine
    """
    with command("verify", json) as console:
        from lotlip_data.pipeline import inspection

        check = inspection.verify(run)
        console.result(check.figures)
        for line in check.lines:
            console.print(line)
        if check.problems:
            raise typer.Exit(FAILED)


def report(
    run: RunFolder,
    out: Annotated[str | None, typer.Option(help="HTML file to write. Default: RUN/report.html.")] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price per GPU-hour in any currency, for the cost so far.")
    ] = None,
    stats: Annotated[
        bool,
        typer.Option(help="Count the whole dataset for Table 6 and its scores, which takes long on a large dataset."),
    ] = True,
    labels: LabelFile = None,
    json: Json = False,
) -> None:
    """Write a page about a run: data, failures and cost.

    Example: lotlip-data report runs/mine --price 2.5
    """
    with command("report", json) as console:
        from lotlip_data.pipeline import inspection

        page = inspection.report(run, out, price=price, stats=stats, labels=labels)
        for problem in page.problems:
            console.error(problem)
        for line in page.lines:
            console.print(line)
        console.result(page.figures)
        if page.problems:
            raise typer.Exit(FAILED)


def view(
    run: RunFolder,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            metavar="MODEL",
            help="A trained model's folder, such as RUN/train/lotlip/model, for search and attention maps "
            "(repeatable: models are shown side by side).",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine's loopback address; 0 is any free port.")
    ] = 8765,
) -> None:
    """Browse a run in a local web page: samples and failures.

    Only this machine can open the page. From another machine: ssh -L 8765:localhost:8765 THIS_MACHINE.

    Example: lotlip-data view runs/demo --checkpoint runs/demo/train/lit/model --checkpoint runs/demo/train/lotlip/model
    """
    with command("view", False):
        from lotlip_data.manifests import storage
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.viewer.app import View, create_app
        from lotlip_data.pipeline.viewer.server import listen, serve

        folder = Run.at(run)
        if not any(map(storage.exists, (folder.manifest, folder.plan, folder.dataset))):
            raise UserError(f"{folder.url}: there is no run; name the folder that `lotlip-data download` filled")
        with listen(port) as listening:  # a port in use is an error before models are loaded
            models = None
            if checkpoint:
                from lotlip_data.pipeline.viewer.models import Models

                models = Models(checkpoint)
            serve(create_app(View(folder, models)), listening)
