"""The command line. It imports nothing heavy: each command loads what it needs when it is called."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli import evaluate as cli_eval
from lotlip_data.pipeline.cli import inspect
from lotlip_data.pipeline.cli import lists as cli_lists
from lotlip_data.pipeline.cli import study as cli_study
from lotlip_data.pipeline.cli import train as cli_train
from lotlip_data.pipeline.cli.common import FAILED, Json, ManifestFile, RunFolder
from lotlip_data.pipeline.cli.common import command as _command
from lotlip_data.pipeline.cli.common import existing as _existing
from lotlip_data.pipeline.cli.common import finish as _finish

app = typer.Typer(
    name="lotlip-data",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Relabel images with long captions at scale, and train LoTLIP on them.",
    epilog="The stages in their order: download, recaption, shard, train, eval; `run` does all of them.",
)
world = typer.Typer(
    no_args_is_help=True, help="The offline world that the demo and the tests live in.", rich_markup_mode=None
)
app.add_typer(world, name="world")
convert = typer.Typer(
    no_args_is_help=True, help="Bring a checkpoint into the layout that engines read.", rich_markup_mode=None
)
app.add_typer(convert, name="convert")


Captioners = Annotated[
    list[str] | None,
    typer.Option("--captioner", "-c", help="A captioner's name; again for another. Default: the manifest's."),
]
Engine = Annotated[str | None, typer.Option(help="vllm, transformers, or auto: vLLM where there is a GPU.")]
Actors = Annotated[int | None, typer.Option(min=1, help="Actors a captioner, at most.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="GPUs an actor.")]


@app.command()
def download(
    manifest: ManifestFile,
    run: RunFolder,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Fetch again what failed for reasons that can pass.")
    ] = False,
    accept_failures: Annotated[
        bool, typer.Option("--accept-failures", help="Shards of which nothing comes are done all the same.")
    ] = False,
    json: Json = False,
) -> None:
    """Fetch the manifest's images with img2dataset on Ray.

    Example: lotlip-data download my-images.yaml runs/mine --retry-failed
    """
    with _command("download", json, run) as console:
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline import stages
        from lotlip_data.pipeline.cli.common import load_validated_manifest

        outcome = stages.download(load_validated_manifest(manifest), Run.at(run), retry_failed, accept_failures)
        _finish(console, outcome, "download")


@app.command()
def recaption(
    run: RunFolder,
    captioner: Captioners = None,
    engine: Engine = None,
    actors: Actors = None,
    gpus: Gpus = None,
    json: Json = False,
) -> None:
    """Run captioners over the images that lack their captions.

    Example: lotlip-data recaption runs/mine --captioner llava --engine vllm --actors 8 --gpus 1
    """
    with _command("recaption", json, run) as console:
        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline import stages

        given = {"engine": engine, "max_actors": actors, "num_gpus": gpus}
        pool = {name: value for name, value in given.items() if value is not None}
        at = Run.at(run)
        _finish(console, stages.recaption(frozen(at), at, captioner or (), pool), "recaption")


@app.command()
def shard(run: RunFolder, json: Json = False) -> None:
    """Join images and captions, split into sub-captions, and write the dataset.

    Example: lotlip-data shard runs/mine
    """
    with _command("shard", json, run) as console:
        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline import stages

        at = Run.at(run)
        _finish(console, stages.shard(frozen(at), at), "shard")


@app.command()
def stats(run: RunFolder, json: Json = False) -> None:
    """The paper's Table 6 for the run's dataset: images, texts, sub-captions and tokens a text, flags.

    Example: lotlip-data stats runs/mine
    """
    with _command("stats", json) as console:
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.dataset.stats import dataset_stats, table

        found = dataset_stats(_existing(Run.at(run)))
        console.result(found)
        for row in table(found):
            console.print(row)


@app.command()
def verify(run: RunFolder) -> None:
    """Read the dataset back and name what is damaged, missing or foreign.

    Example: lotlip-data verify runs/mine
    """
    with _command("verify", False) as console:
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.dataset.verify import verify as check

        problems = check(_existing(Run.at(run)))
        for problem in problems:
            console.print(str(problem))
        console.print(f"verify: {len(problems)} problems" if problems else "verify: everything is there and intact")
        if problems:
            raise typer.Exit(FAILED)


@app.command(name="run")
def run_line(manifest: ManifestFile, run: RunFolder, json: Json = False) -> None:
    """Every stage in turn, from the list to the trained and evaluated model.

    Example: lotlip-data run my-images.yaml runs/mine
    """
    with _command("run", json, run) as console:
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline import stages
        from lotlip_data.pipeline.cli.common import load_validated_manifest

        _finish(console, stages.run_pipeline(load_validated_manifest(manifest), Run.at(run)), "run")


@app.command()
def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 10.0,
    failures: Annotated[
        bool,
        typer.Option("--failures", help="What could not be fetched, by reason and host; reads every shard's counts."),
    ] = False,
    json: Json = False,
) -> None:
    """How far a run is, and how fast it goes: from its folder alone, so on any machine.

    Example: lotlip-data status s3://bucket/run --watch
    """
    with _command("status", json) as console:
        import sys
        import time

        from lotlip_data.manifests.manifest import frozen
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.reporting.status import format_text, get_status

        frozen(Run.at(run))
        while True:
            progress = get_status(Run.at(run), failures=failures)
            if watch and sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            console.result({**progress})
            for row in format_text(progress):
                console.print(row)
            if not watch:
                break
            time.sleep(every)


@app.command()
def demo(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Where to put it.")] = "runs/demo",
    images: Annotated[int, typer.Option(min=150, help="Scenes to offer.")] = 1200,
    json: Json = False,
) -> None:
    """The whole line, small, offline, on a CPU: a rendered world, tiny captioners, three trained models.

    Example: lotlip-data demo runs/demo
    """
    with _command("demo", json, run) as console:
        from lotlip_data.manifests.run_layout import Run
        from lotlip_data.pipeline.demo import demo as play

        _finish(console, play(Run.at(run), images), "demo")


@world.command()
def accuracy(
    captioner: Annotated[list[str], typer.Argument(help="Captioners, such as tiny-llava.")],
    scenes: Annotated[int, typer.Option(min=1, help="Unseen scenes to caption.")] = 500,
    engine: Annotated[str, typer.Option(help="vllm, transformers or auto.")] = "auto",
    json: Json = False,
) -> None:
    """Precision and recall of what captioners say of unseen scenes: colour, shape, size and place.

    Example: lotlip-data world accuracy tiny-llava tiny-sharegpt4v tiny-instructblip
    """
    with _command("accuracy", json) as console:
        from lotlip_data.pipeline.caption_accuracy import accuracy as measure
        from lotlip_data.pipeline.recaptioning.config import resolve_captioners

        figures = {}
        for one in resolve_captioners(captioner, {"engine": engine}):
            found = measure(one.config, scenes, engine)
            figures[one.config.name] = {"facts_precision": found.precision, "facts_recall": found.recall}
            console.print(
                f"{one.config.name}: precision {found.precision:.4f}, recall {found.recall:.4f}, {scenes} scenes"
            )
        console.result(figures)


@convert.command()
def sharegpt4v(
    source: Annotated[str, typer.Argument(metavar="SRC", help="ShareGPT4V as published: a folder or a hub id.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A new folder on this machine.")],
    revision: Annotated[str | None, typer.Option(help="Of SRC, where it is a hub id.")] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="A folder or hub id, instead of what SRC's mm_vision_tower names.")
    ] = None,
    vision_tower_revision: Annotated[str | None, typer.Option(help="Of the vision tower's hub id.")] = None,
) -> None:
    """ShareGPT4V's published checkpoint into the Hugging Face LLaVA layout; goes on where it was stopped.

    Example: lotlip-data convert sharegpt4v Lin-Chen/ShareGPT4V-7B models/sharegpt4v
    """
    with _command("convert", False):
        from lotlip_data.captioners.convert.sharegpt4v import convert as bring

        tower = {"vision_tower": vision_tower, "vision_tower_revision": vision_tower_revision}
        bring(source, target, revision=revision, **tower)


@convert.command()
def lotlip(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The authors' checkpoint (file, folder, hub id), or a model's folder.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="A new folder; for a model's folder, a new .pt file.")],
    revision: Annotated[str | None, typer.Option(help="Of SRC, where it is a hub id.")] = None,
    image_tower: Annotated[
        str | None, typer.Option(help="Whose configuration SRC has. Default: ViT-B, timm's.")
    ] = None,
    text_tower: Annotated[
        str | None, typer.Option(help="Whose configuration and tokenizer SRC has. Default: bert-base-uncased.")
    ] = None,
) -> None:
    """The authors' released LoTLIP into a model's folder that `eval` reads, or such a folder into their layout.

    Example: lotlip-data convert lotlip weiwu-ww/LoTLIP-ViT-B-16-100M models/lotlip-b16
    """
    with _command("convert", False):
        from lotlip_data.training.convert_lotlip import convert as bring

        bring(source, target, revision=revision, image_tower=image_tower, text_tower=text_tower)


for others in (cli_lists, cli_train, cli_eval, inspect, cli_study):
    others.register(app)
ORDER = [
    "sources",
    "manifest-schema",
    "plan",
    "download",
    "recaption",
    "import",
    "shard",
    "features",
    "train",
    "eval",
    "eval-tables",
]
ORDER += ["embed", "run", "status", "stats", "verify", "report", "view", "demo"]
ORDER += ["study", "study-page"]
app.registered_commands.sort(key=lambda one: ORDER.index(str(one.name or getattr(one.callback, "__name__", ""))))


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
