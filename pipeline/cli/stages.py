"""The commands that run stages of the pipeline: each calls the function of the same name in `pipeline.stages`."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import Json, ManifestFile, RunFolder, command, finish, load_validated_manifest

Follow = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Work on each shard as soon as the stage before has committed it, wherever that stage runs, and end when "
        "the stages before are complete.",
    ),
]
UpdateManifest = Annotated[
    bool,
    typer.Option(
        "--update-manifest", help="Replace the settings in RUN/manifest.yaml by those of MANIFEST if they differ."
    ),
]


def run(manifest: ManifestFile, run: RunFolder, update_manifest: UpdateManifest = False, json: Json = False) -> None:
    """Run every stage, from URL lists to evaluated models.

    Images are captioned while others download, and shards are written while others are captioned.

    Example: lotlip-data run my-images.yaml runs/mine
    """
    with command("run", json, run) as console:
        from lotlip_data.pipeline.stages import run_pipeline

        finish(console, run_pipeline(load_validated_manifest(manifest), run, update_manifest=update_manifest), run)


def download(
    manifest: ManifestFile,
    run: RunFolder,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Download images again that failed for transient reasons.")
    ] = False,
    accept_failures: Annotated[
        bool,
        typer.Option("--accept-failures", help="Mark shards complete even if none of their images downloaded."),
    ] = False,
    update_manifest: UpdateManifest = False,
    json: Json = False,
) -> None:
    """Download the images of a manifest.

    Uses img2dataset on Ray.

    Example: lotlip-data download my-images.yaml runs/mine --retry-failed
    """
    with command("download", json, run) as console:
        from lotlip_data.pipeline import stages

        content = load_validated_manifest(manifest)
        outcome = stages.download(
            content,
            run,
            retry_failed=retry_failed,
            accept_failures=accept_failures,
            update_manifest=update_manifest,
        )
        finish(console, outcome, run)


def recaption(
    run: RunFolder,
    captioner: Annotated[
        list[str] | None,
        typer.Option(
            "--captioner",
            "-c",
            metavar="NAME",
            help="Captioner to run (repeatable): one of the run's manifest with its settings, otherwise a preset. The "
            "name of a text, such as qwen_long, selects that text of a captioner alone. Default: all captioners of the "
            "manifest.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engine to use: vllm, transformers, or auto, which is vLLM where there is a GPU."),
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Maximum number of actors per captioner.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="Number of GPUs per actor.")] = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Caption the downloaded images with each captioner.

    Example: lotlip-data recaption runs/mine --captioner llava --engine vllm --actors 8 --gpus 1
    """
    with command("recaption", json, run) as console:
        from lotlip_data.pipeline import stages

        options = {"engine": engine, "max_actors": actors, "num_gpus": gpus}
        pool = {name: value for name, value in options.items() if value is not None}
        finish(console, stages.recaption(run, captioner or (), pool=pool, follow=follow), run)


def import_captions(
    table: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE",
            default_factory=list,
            help="Files of the table: CSV, TSV, JSON lines or Parquet; `*` in a name stands for many. Default: the "
            "lists of the manifest's sources that carry captions.",
            show_default=False,
        ),
    ],
    run: RunFolder,
    captioner: Annotated[
        list[str] | None,
        typer.Option(
            "--captioner", "-c", metavar="NAME=COLUMN", help="Captioner name and its text column (repeatable)."
        ),
    ] = None,
    url_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the image URLs. Default: url; `Image Path` for dreamlip; found by its name for recap-long."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of the table: dreamlip; recap-long, whose columns are found by their names; or csv, tsv, "
            "jsonl or parquet. Default: by the file name.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", metavar="NAMES", help="Names of all columns, with commas, for CSV and TSV without a header."
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace captions imported before, such as those of a table corrected since."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what is taken from each column. Nothing is imported.")
    ] = False,
    json: Json = False,
) -> None:
    """Join existing captions to the images by URL.

    Without a TABLE, imports the captions that the lists of the manifest's sources carry.

    Example: lotlip-data import recap-coyo-*.csv runs/coyo --format recap-long
    """
    with command("import", json, run) as console:
        from lotlip_data.pipeline import stages

        names = [name.strip() for name in columns.split(",")] if columns else []
        outcome = stages.import_captions(
            run,
            table,
            captioner or (),
            url_column=url_column,
            table_format=form,
            column_names=names,
            replace=replace,
            dry_run=dry_run,
        )
        finish(console, outcome, run)


def score(
    run: RunFolder,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer", metavar="NAME", help="Scorer to run (repeatable). Default: all of the run's manifest."
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Number of GPUs per task of a scorer with a model. Default: half a GPU where the cluster has GPUs.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Score images, texts and sub-captions.

    Each scorer of the manifest gives its scores. They are columns of the dataset, and `clean.scores` leaves out what
    scores badly.

    Example: lotlip-data score runs/mine --scorer similarity --gpus 0.5
    """
    with command("score", json, run) as console:
        from lotlip_data.pipeline import stages

        finish(console, stages.score(run, scorer or (), gpus=gpus), run)


def shard(
    run: RunFolder,
    captioners: Annotated[
        list[str] | None,
        typer.Option(
            "--captioners",
            metavar="NAMES",
            help="Captioners whose texts the dataset has, such as llava,instructblip, in the order of its columns. "
            "Default: `shard.captioners` of the run's manifest, otherwise all that the run has captions by.",
        ),
    ] = None,
    follow: Follow = False,
    json: Json = False,
) -> None:
    """Join images and captions, and write the dataset.

    Example: lotlip-data shard runs/mine
    """
    with command("shard", json, run) as console:
        from lotlip_data.pipeline import stages

        names = [name.strip() for text in captioners or () for name in text.split(",") if name.strip()]
        finish(console, stages.shard(run, names, follow=follow), run)


def demo(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="The run's folder on this machine.")] = "runs/demo",
    images: Annotated[int, typer.Option(min=150, help="Number of scenes to serve and download.")] = 1200,
    json: Json = False,
) -> None:
    """Run the whole pipeline in minutes, offline, on a CPU.

    A local HTTP server serves rendered scenes, tiny captioners describe them, and three models are trained.

    Example: lotlip-data demo runs/demo
    """
    with command("demo", json, run) as console:
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.demo import demo as run_demo

        finish(console, run_demo(Run.at(run), images))
