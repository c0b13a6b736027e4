"""The commands about trained models: training them, what they read, and what they embed."""

import os
from typing import Annotated, Any

import typer

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.common import FAILED, Json, RunFolder, command, finish


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    for one in (features, train, embed):
        app.command()(one)


def train(
    run: RunFolder,
    method: Annotated[
        str | None,
        typer.Option(
            help="lit, lit_long, lit_longclip, register, lotlip, clip or lotlip_scratch. "
            "Default: the manifest's trainings."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The paper's settings at a scale: 3m, 12m, 30m or 100m; or demo.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the folder in RUN/train. Default: the method.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the training, such as lr=1e-3."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = True,
    ray: Annotated[bool, typer.Option("--ray", help="Train on several workers of a Ray cluster.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="With --ray: how many.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs a worker.")] = 1,
    cpus: Annotated[float, typer.Option(min=0.1, help="With --ray: CPUs a worker.")] = 4,
    json: Json = False,
) -> None:
    """Train LoTLIP, or a method that it is compared with, on the run's dataset.

    Several processes: torchrun --nproc-per-node 8 --no-python lotlip-data train …, or --ray --workers 8.

    Example: lotlip-data train runs/mine --method lotlip --preset 3m
    """
    of_several = os.environ.get("WORLD_SIZE", "1") != "1"  # torchrun's
    with command("train", json, run, silent=of_several and os.environ.get("RANK") != "0") as console:
        import yaml

        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.manifests.settings.training import TrainingEntry, Workers
        from lotlip_data.pipeline.model_stages import train as line

        entry: dict[str, Any] = {} if method is None else {"method": method, "name": name or method}
        if preset and method is None:
            raise UserError(f"--preset {preset}: name a --method too")
        entry |= {"preset": preset} if preset else {}
        for setting in settings or []:
            key, equals, value = setting.partition("=")
            if not equals or method is None:
                raise UserError(f"--set {setting}: give NAME=VALUE, and --method too")
            entry[key] = yaml.safe_load(value)
        at = Run.at(run)
        entries = [TrainingEntry.parse(entry)] if entry else []
        on_ray = Workers(workers=workers, gpus=gpus, cpus=cpus) if ray else None
        outcome = line.train(frozen(at), at, entries, resume, on_ray)
        finish(console, outcome, "train")


def features(
    run: RunFolder,
    image_tower: Annotated[
        str | None,
        typer.Option(help="A folder or hub id. Default: those of the manifest's trainings, else the paper's."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a side. Default: the tower's own.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs a task.")] = 0,
    json: Json = False,
) -> None:
    """Compute the locked image tower's features of the dataset on Ray, once for all trainings with that tower.

    A training computes what is missing by itself; on many images, with few GPUs for training, this is faster.

    Example: lotlip-data features runs/mine --gpus 1
    """
    with command("features", json, run) as console:
        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.model_stages import features as line

        at = Run.at(run)
        outcome = line.features(frozen(at), at, image_tower, image_size, gpus)
        finish(console, outcome, "features")


def embed(
    checkpoint: Annotated[str, typer.Argument(help="The folder of a trained model, such as RUN/train/lotlip/model.")],
    out: Annotated[str, typer.Argument(help="The Parquet file to write: columns name or text, and feature.")],
    images: Annotated[str | None, typer.Option(help="A folder of images, with its folders.")] = None,
    texts: Annotated[str | None, typer.Option(help="A text file, one text a line.")] = None,
    json: Json = False,
) -> None:
    """Unit features of images or texts by a trained model; their products are cosine similarities.

    Example: lotlip-data embed runs/demo/train/lotlip/model photos.parquet --images ~/photos
    """
    with command("embed", json) as console:
        if (images is None) == (texts is None):
            raise UserError("give either --images FOLDER or --texts FILE")
        from lotlip_data.training.embed import embed_images, embed_texts
        from lotlip_data.training.models.lotlip import LoTLIP

        model = LoTLIP.load(checkpoint)
        found = embed_images(model, images, out) if images is not None else embed_texts(model, str(texts), out)
        console.print(f"{found.written} features of {model.towers.image.dim} numbers in {out}")
        console.result({"written": found.written, "failed": len(found.failed)})
        if found.failed:
            console.print(f"embed: {len(found.failed)} failed")
            for reason in found.failed[:20]:
                console.print(f"  {reason}")
            raise typer.Exit(FAILED)
