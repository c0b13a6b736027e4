"""The command that writes a run's captions as plain files."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import Json, RunFolder, command, finish


def export(
    run: RunFolder,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="The folder to write to: a path or an fsspec URL. It is created where it does not exist.",
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Format of the files: parquet, jsonl, csv, dreamlip (CSV with DreamLIP's columns), or webdataset "
            "(tars with the images).",
        ),
    ] = "parquet",
    captioners: Annotated[
        list[str] | None,
        typer.Option(
            "--captioners",
            metavar="NAMES",
            help="Captioners whose texts are exported, such as llava,instructblip, in the order of their columns. "
            "NAME=COLUMN gives the column of a captioner's texts another name. Default: those of the dataset.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write the captions as plain files, beside your images.

    There is one file for each image shard. The command needs no dataset: run it after recaption or import.

    Example: lotlip-data export runs/mine --format jsonl --out captions
    """
    with command("export", json, run) as console:
        from lotlip_data.pipeline import stages

        names = [name.strip() for text in captioners or () for name in text.split(",") if name.strip()]
        finish(console, stages.export(run, out, form, captioners=names))
