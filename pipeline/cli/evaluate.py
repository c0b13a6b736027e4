"""The commands that evaluate models."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import Json, command


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A trained model's folder, such as RUN/train/lotlip/model; open_clip:MODEL/WEIGHTS; clip:HUB_ID."
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            metavar="NAME[=FOLDER]",
            help="Task and the folder of its files (repeatable): synthetic (default), dci, iiw, sharegpt4v-1k, "
            "sharegpt4v-10k, urban-1k, docci, mscoco, flickr30k or imagenet; or your own images and texts: "
            "custom=PATH or custom:NAME=PATH, a folder or a table.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Root folder of the tasks that are given without a folder: DATA/NAME.")
    ] = "eval_data",
    out: Annotated[
        str | None,
        typer.Option(help="JSON file to write. Default: eval.json or eval-TASKS.json beside the model's folder."),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Evaluate the part of a task that exists; its figures are marked."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Device: cpu, cuda, cuda:1, …. Default: a GPU where there is one.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in results and tables. Default: RUN/TRAINING, or the folder's name."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a model's zero-shot retrieval and classification.

    Without --task, the model is evaluated on unseen synthetic scenes, which says nothing about photographs.

    Example: lotlip-data eval runs/demo/train/lotlip/model

    Example: lotlip-data eval models/lotlip-b16 --task iiw=data/iiw --task mscoco=data/coco

    Example: lotlip-data eval models/lotlip-b16 --task custom:products=data/products.csv
    """
    with command("eval", json) as console:
        from lotlip_data.pipeline import inspection

        result = inspection.evaluate(
            checkpoint, task or (), data=data, out=out, allow_partial=allow_partial, device=device, name=name
        )
        console.summarise(result.lines)
        console.result(result.figures)


def eval_tables(
    results: Annotated[list[str], typer.Argument(help="JSON files that `eval` wrote, of one model or several.")],
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX with booktabs instead of Markdown.")] = False,
    json: Json = False,
) -> None:
    """Print evaluations as the paper's Tables 4 and 5.

    The rows of the paper come first.

    Example: lotlip-data eval-tables models/eval-iiw.json eval-open-clip-ViT-B-16-openai-iiw.json
    """
    with command("eval-tables", json) as console:
        from lotlip_data.training.evaluation.evaluate import read_results
        from lotlip_data.training.evaluation.report import figures_by_model, tables

        contents = list(map(read_results, results))
        console.result(figures_by_model(contents))
        console.print(tables(contents, "latex" if latex else "markdown"))
