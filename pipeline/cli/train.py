"""The commands that train models and compute the features of their trainings."""

import os
from typing import Annotated, Any

import typer

from lotlip_data.pipeline.cli.common import Json, RunFolder, command, finish


def train(
    run: RunFolder,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method to train: lit, lit_long, lit_longclip, register, lotlip, clip, lotlip_scratch, longclip, "
            "debias or multi_positive. Default: the trainings of the manifest."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The paper's settings at a scale: 3m, 12m, 30m or 100m; or demo.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the folder in RUN/train. Default: the method.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the training, such as lr=1e-3 (repeatable)."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint, or require a new folder.")] = True,
    ray: Annotated[bool, typer.Option("--ray", help="Train on workers of a Ray cluster.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of workers, with --ray.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Number of GPUs per worker, with --ray.")] = 1,
    cpus: Annotated[float, typer.Option(min=0.1, help="Number of CPUs per worker, with --ray.")] = 4,
    json: Json = False,
) -> None:
    """Train LoTLIP, or a method that it is compared with.

    On several processes: torchrun --nproc-per-node 8 --no-python lotlip-data train …, or --ray --workers 8.

    Example: lotlip-data train runs/mine --method lotlip --preset 3m
    """
    # torchrun starts several processes and sets these variables; only the first process prints.
    silent = os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK") != "0"
    with command("train", json, run, silent=silent) as console:
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.pipeline import stages

        if preset and method is None:
            raise UserError(f"--preset {preset}: give --method too")
        outcome = stages.train(
            run,
            method,
            preset=preset,
            name=name if method else None,
            settings=_parse_settings(settings or [], method),
            resume=resume,
            on_ray={"workers": workers, "gpus": gpus, "cpus": cpus} if ray else None,
        )
        finish(console, outcome, run)


def _parse_settings(options: list[str], method: str | None) -> dict[str, Any]:
    """The values of `--set`, read as YAML. Raises UserError."""
    import yaml

    from lotlip_data.manifests.errors import UserError

    settings = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or method is None:
            raise UserError(f"--set {option}: give NAME=VALUE, and --method too")
        settings[name] = yaml.safe_load(value)
    return settings


def features(
    run: RunFolder,
    image_tower: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of the image tower; clip:NAME or open_clip:NAME for that of a whole CLIP. Default: "
            "the towers of the manifest's trainings, otherwise the paper's."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square images in pixels. Default: the tower's.")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="Number of GPUs per task. Default: half a GPU where the cluster has GPUs, else 0."),
    ] = None,
    json: Json = False,
) -> None:
    """Compute the locked image tower's features in advance.

    Optional: a training computes missing features itself. On many images, with few GPUs for training, this is faster.
    It uses Ray.

    Example: lotlip-data features runs/mine --gpus 0.5
    """
    with command("features", json, run) as console:
        from lotlip_data.pipeline import stages

        finish(console, stages.features(run, image_tower, image_size=image_size, gpus=gpus), run)
