"""The commands about the captioners of a run."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import Json, RunFolder, command, finish

app = CommandLine(help="List or remove the captioners of a run.")


@app.command("list")
def list_captioners(run: RunFolder, json: Json = False) -> None:
    """Show the captioners of a run and how much each has done.

    Example: lotlip-data captioners list runs/mine
    """
    with command("captioners-list", json) as console:
        from lotlip_data.pipeline import inspection

        stored = inspection.captioners(run)
        console.result(stored.figures)
        for line in stored.lines:
            console.print(line)


@app.command("remove")
def remove_captioner(
    run: RunFolder,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of the captioner: its folder in RUN/captions. A captioner of the manifest that makes several "
            "texts for each image is removed with all of them.",
        ),
    ],
    captions: Annotated[
        bool, typer.Option("--captions", help="Remove its captions too. Without it, a captioner with captions stays.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove a captioner from a run.

    The dataset changes with the next `shard`.

    Example: lotlip-data captioners remove runs/mine instructblip
    """
    with command("captioners-remove", json, run) as console:
        from lotlip_data.pipeline import stages

        finish(console, stages.remove_captioner(run, name, captions=captions))
