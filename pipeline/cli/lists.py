"""The commands about lists: what is published, what a manifest would do, and captions that exist already.

What the project knows of published sources, for people and scripts.
"""

from typing import Annotated, Any

import typer

from lotlip_data.manifests.catalog import SOURCES, Published, published, scales
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.common import FAILED, Json, ManifestFile, RunFolder, command
from lotlip_data.pipeline.planning.hardware import Hardware


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(sources)
    app.command()(plan)
    app.command(name="manifest-schema")(manifest_schema)
    app.command(name="import")(import_table)


def sources(json: Json = False) -> None:
    """The published sources and scales that a manifest can name, and where their lists can be had.

    Example: lotlip-data sources
    """
    with command("sources", json) as console:
        console.result(figures())
        for line in format_text():
            console.print(line)


def manifest_schema() -> None:
    """Print the JSON schema of a manifest, for completion and checks in editors.

    Example: lotlip-data manifest-schema > manifest.schema.json
    """
    import json

    from lotlip_data.manifests import json_schema

    typer.echo(json.dumps(json_schema.manifest_schema(), indent=2, ensure_ascii=False))


def plan(
    manifest: ManifestFile,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run of it: what is done counts, and its speeds are taken.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each source to look at, about.")] = 20_000,
    gpus: Annotated[int, typer.Option(help="Of the cluster.")] = Hardware.gpus,
    gpu_gib: Annotated[float, typer.Option(help="Memory of a GPU, as torch reports it.")] = Hardware.gpu_gib,
    tflops: Annotated[
        float, typer.Option(help="Peak of a GPU in 16 bit; for speeds that are reckoned.")
    ] = Hardware.tflops,
    mfu: Annotated[
        float, typer.Option(help="Share of that peak that is reached (model FLOPs utilisation).")
    ] = Hardware.mfu,
    price: Annotated[float | None, typer.Option(help="Of a GPU for an hour.")] = Hardware.price,
    speed: Annotated[
        list[str] | None, typer.Option(metavar="NAME=IMAGES", help="Images a second of an actor; again for another.")
    ] = None,
    time: Annotated[
        int, typer.Option(min=0, help="Caption so many images here with each captioner that has no --speed.")
    ] = 0,
    json: Json = False,
) -> None:
    """What a manifest would do and cost, from a sample of each of its lists. Nothing is fetched or written.

    Example: lotlip-data plan my-images.yaml --gpus 32 --price 2.5
    """
    with command("plan", json) as console:
        from lotlip_data.manifests.manifest import held_for
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.cli.common import load_validated_manifest
        from lotlip_data.pipeline.planning import cost as plan_cost
        from lotlip_data.pipeline.planning import lists as plan_lists
        from lotlip_data.pipeline.planning.storage import measure_storage
        from lotlip_data.pipeline.planning.throughput import Speed, measure_speed
        from lotlip_data.pipeline.recaptioning.config import resolve_captioners

        hardware = Hardware(gpus=gpus, gpu_gib=gpu_gib, tflops=tflops, mfu=mfu, price=price)
        asked, at = load_validated_manifest(manifest), Run.at(run) if run else None
        if at:
            held_for(asked, at)
        chosen = resolve_captioners(asked.captioners)
        given = _speeds(speed or [], [one.config.name for one in chosen])
        found = plan_lists.plan_lists(asked, rows, measure_storage(at) if at else None)
        for line in plan_lists.format_text(found):
            console.print(line)
        speeds = {name: Speed(value, "as given") for name, value in given.items()}
        for one in chosen if time else []:
            if one.config.name not in speeds:
                speeds[one.config.name] = measure_speed(one, time)
        cost = None
        if found.images or at:
            cost = plan_cost.plan_cost(found.images or 0, chosen, hardware, speeds, at, found.shards)
            for line in plan_cost.format_text(cost):
                console.print(line)
        console.result(found.to_dict() | {"captioning": cost.to_dict() if cost else None})
        if found.problems:
            raise typer.Exit(FAILED)


def _speeds(given: list[str], names: list[str]) -> dict[str, float]:
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            speed = float(value)
        except ValueError:
            speed = 0.0
        if name not in names or not 1e-6 <= speed <= 1e6:
            known = ", ".join(names)
            raise UserError(f"--speed {one}: give NAME=IMAGES, 0.000001 to 1,000,000 images a second of one of {known}")
        found[name] = speed
    return found


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
        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.recaptioning.caption_table import caption_table
        from lotlip_data.pipeline.recaptioning.import_captions import format_text, import_captions

        at = Run.at(run)
        frozen(at)
        summary = import_captions(at, caption_table(table, captioner or (), url_column, form))
        console.result(summary.to_dict())
        for line in format_text(summary):
            console.print(line)


def figures() -> dict[str, Any]:
    """By source and by scale; a scale's `images` are the paper's."""
    known = {name: published(name) for name in SOURCES}
    return {
        "sources": {name: one.model_dump(exclude={"name"}) for name, one in known.items()},
        "scales": {
            scale: {"sources": list(names), "images": sum(known[name].images for name in names)}
            for scale, names in scales().items()
        },
    }


def format_text() -> list[str]:
    """The same as a table, and under it what each source is."""
    known = [published(name) for name in SOURCES]
    lines = [f"{'source':10}{'rows published':>16}{'images (Table 6)':>18}{'tokens a raw text':>19}  format"]
    lines += [
        f"{one.name:10}{one.rows:>16,}{one.images:>18,}{one.raw_tokens:>19.2f}  {one.source.get('format', 'any')}"
        for one in known
    ]
    lines.append("")
    for scale, one in figures()["scales"].items():
        lines.append(f"scale {scale:5}{one['images']:>14,} images: {', '.join(one['sources'])}")
    for source in known:
        lines += ["", *_about(source)]
    return [
        *lines,
        "",
        "The lists do not come with lotlip-data. In a manifest: `use: cc3m` in a source, or `scale: 3M`.",
    ]


def _about(one: Published) -> list[str]:
    read = "; ".join(f"{name}: {value}" for name, value in one.source.items() if name != "format")
    rows = {"obtain": one.obtain, "licence": one.licence, "homepage": one.homepage, "settings": read, "ours": one.ours}
    return [f"{one.name}: {one.title}", *(f"  {name:9} {text}" for name, text in rows.items() if text)]
