"""The commands about lists: what is published, what a manifest would do, and captions that exist already."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli_command import FAILED, Json, ManifestFile, RunFolder, command


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(sources)
    app.command()(plan)
    app.command(name="import")(import_table)


def sources(json: Json = False) -> None:
    """The published sources and scales that a manifest can name, and where their lists can be had.

    Example: lotlip-data sources
    """
    with command("sources", json) as console:
        from lotlip_data.pipeline.sources import as_lines, figures

        console.result(figures())
        for line in as_lines():
            console.say(line)


def plan(
    manifest: ManifestFile,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each source to look at, about.")] = 20_000,
    json: Json = False,
) -> None:
    """What a manifest would do, from a sample of each of its lists. Nothing is fetched or written.

    Example: lotlip-data plan my-images.yaml
    """
    with command("plan", json) as console:
        from lotlip_data.manifests.manifest import load
        from lotlip_data.pipeline.plan_lists import as_lines, plan_lists

        found = plan_lists(load(manifest), rows)
        console.result(found.figures())
        for line in as_lines(found):
            console.say(line)
        if found.problems:
            raise typer.Exit(FAILED)


def import_table(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="CSV, TSV, JSON lines or Parquet; `*` for many files.")],
    run: RunFolder,
    captioner: Annotated[
        list[str] | None,
        typer.Option("--captioner", "-c", metavar="NAME=COLUMN", help="A captioner and its column; again for another."),
    ] = None,
    url_column: Annotated[
        str | None, typer.Option(help="The column of the URLs. Default: url; `Image Path` for dreamlip.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="dreamlip, or csv, tsv, jsonl, parquet where the ending does not tell."),
    ] = None,
    json: Json = False,
) -> None:
    """Join a table of captions to the run's images by URL, as if our captioners had written them.

    Example: lotlip-data import cc3m_3long_3short_1raw_captions_url.csv runs/cc3m --format dreamlip
    """
    with command("import", json, run) as console:
        from lotlip_data.manifests.layout import Run
        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.pipeline.import_captions import as_lines, import_captions
        from lotlip_data.pipeline.import_table import caption_table

        at = Run.at(run)
        frozen(at)
        summary = import_captions(at, caption_table(table, captioner or (), url_column, form), console.say)
        console.result(summary.figures())
        for line in as_lines(summary):
            console.say(line)
