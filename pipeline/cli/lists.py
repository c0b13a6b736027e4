"""The commands to use before a run: the published sources, and the plan of a manifest."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, ManifestFile, command, load_validated_manifest
from lotlip_data.pipeline.planning.hardware import Hardware

if TYPE_CHECKING:
    from lotlip_data.manifests.sources.catalog import Published


def sources(json: Json = False) -> None:
    """List the published sources and scales.

    Example: lotlip-data sources
    """
    with command("sources", json) as console:
        console.result(figures())
        for line in format_text():
            console.print(line)


def manifest_schema() -> None:
    """Print the JSON schema of manifests, for editors.

    An editor with this schema completes and checks a manifest.

    Example: lotlip-data manifest-schema > manifest.schema.json
    """
    import json

    from lotlip_data.manifests import json_schema

    typer.echo(json.dumps(json_schema.manifest_schema(), indent=2, ensure_ascii=False))


def plan(
    manifest: ManifestFile,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="An existing run of this manifest; finished work and measured speeds are used."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Approximate number of rows to read per source.")] = 20_000,
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs in the cluster. Default: unknown, so no estimate in days.")
    ] = Hardware.gpus,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            help="Memory per GPU in GiB, as torch reports it. Default: that of this machine's GPUs, or "
            f"{Hardware.gpu_gib:g} without one."
        ),
    ] = None,
    tflops: Annotated[
        float, typer.Option(help="Peak per GPU in 16-bit TFLOP/s, for captioners of unknown speed.")
    ] = Hardware.tflops,
    mfu: Annotated[
        float, typer.Option(help="Reached share of that peak, 0 to 1 (model FLOPs utilisation).")
    ] = Hardware.mfu,
    price: Annotated[float | None, typer.Option(help="Price per GPU-hour, in any currency.")] = Hardware.price,
    speed: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=IMAGES", help="Images per second of one actor of a captioner (repeatable)."),
    ] = None,
    time: Annotated[
        int,
        typer.Option(min=0, help="Number of images to caption here, to measure each captioner without --speed."),
    ] = 0,
    download_speed: Annotated[
        float | None,
        typer.Option(help="URLs that the cluster downloads per second. Default: as in RUN, otherwise assumed."),
    ] = Hardware.download_speed,
    assumptions: Annotated[
        bool, typer.Option("--assumptions", help="Show every assumption, the columns and the hosts too.")
    ] = False,
    json: Json = False,
) -> None:
    """Estimate a manifest's images, storage, hours and cost.

    Reads a sample of each list. Downloads no image and writes nothing.

    Example: lotlip-data plan my-images.yaml --gpus 32 --price 2.5
    """
    with command("plan", json) as console:
        from lotlip_data.pipeline import inspection
        from lotlip_data.pipeline.core.gpus import smallest_gpu_gib

        result = inspection.plan(
            load_validated_manifest(manifest),
            run,
            rows=rows,
            hardware=Hardware(
                gpus=gpus,
                gpu_gib=smallest_gpu_gib() or Hardware.gpu_gib if gpu_gib is None else gpu_gib,
                tflops=tflops,
                mfu=mfu,
                price=price,
                download_speed=download_speed,
            ),
            speeds=_parse_speeds(speed or []),
            measure=time,
            assumptions=assumptions,
        )
        for line in result.lines:
            console.print(line)
        console.result(result.figures)
        if result.problems:
            raise typer.Exit(FAILED)


def _parse_speeds(options: list[str]) -> dict[str, float]:
    """NAME=IMAGES as numbers. A value that is no number becomes 0, which `inspection.plan` refuses."""
    speeds = {}
    for option in options:
        name, _, value = option.partition("=")
        try:
            speeds[name] = float(value)
        except ValueError:
            speeds[name] = 0.0
    return speeds


def figures() -> dict[str, Any]:
    """The catalog by source and by scale; the `images` of a scale are the paper's."""
    from lotlip_data.manifests.sources.catalog import SOURCES, published, scales

    catalog = {name: published(name) for name in SOURCES}
    return {
        "sources": {name: source.model_dump(exclude={"name"}) for name, source in catalog.items()},
        "scales": {
            scale: {"sources": list(names), "images": sum(catalog[name].images for name in names)}
            for scale, names in scales().items()
        },
    }


def format_text() -> list[str]:
    """The catalog as a table, and below it a paragraph about each source."""
    from lotlip_data.manifests.sources.catalog import SOURCES, published

    catalog = [published(name) for name in SOURCES]
    width = max(len(source.name) for source in catalog)
    lines = [
        f"{'source':{width}}{'rows published':>16}{'images (Table 6)':>18}{'tokens per text':>17}  format  captions"
    ]
    lines += [
        f"{source.name:{width}}{'?' if source.rows is None else f'{source.rows:,}':>16}{source.images:>18,}"
        f"{source.raw_tokens:>17.2f}  {source.source.get('format', 'any'):6}"
        f"  {'yes' if 'captions' in source.source else 'no'}"
        for source in catalog
    ]
    lines.append("")
    for scale, content in figures()["scales"].items():
        lines.append(f"scale {scale:16}{content['images']:>14,} images: {', '.join(content['sources'])}")
    for source in catalog:
        lines += ["", *_describe(source)]
    return [
        *lines,
        "",
        "The lists are not part of lotlip-data. In a manifest, write `use: cc3m` in a source, or `scale: 3M`.",
        "Lists with captions are relabelled releases: `lotlip-data run` imports their captions and captions nothing.",
    ]


def _describe(source: "Published") -> list[str]:
    settings = "; ".join(f"{name}: {value}" for name, value in source.source.items() if name != "format")
    rows = {
        "obtain": source.obtain,
        "licence": source.licence,
        "homepage": source.homepage,
        "settings": settings,
        "ours": source.ours,
    }
    return [f"{source.name}: {source.title}", *(f"  {name:9} {text}" for name, text in rows.items() if text)]
