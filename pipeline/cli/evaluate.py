"""The commands that evaluate models."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.common import Json, command

if TYPE_CHECKING:
    from lotlip_data.training.evaluation.compare import Comparison


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
            "sharegpt4v-10k, urban-1k, docci, mscoco, flickr30k, mscoco-fg, flickr30k-fg, imagenet, sdci, fg-ovd, "
            "fg-ovd-attributes, sugarcrepe or sugarcrepe-pp; or your own images and texts: custom=PATH or "
            "custom:NAME=PATH, a folder or a table.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Root folder of the tasks that are given without a folder: DATA/NAME.")
    ] = "eval_data",
    out: Annotated[
        str | None,
        typer.Option(
            help="JSON file to write. Default: eval-TASKS.json beside a training's model folder, eval-NAME-TASKS.json "
            "beside another folder NAME."
        ),
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

    Sets with hard negatives measure how often the right caption scores above the wrong ones.
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
    results: Annotated[
        list[str] | None, typer.Argument(help="JSON files that `eval` wrote, of one model or several.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX with booktabs instead of Markdown.")] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Print which differences between two models are real, instead of the tables. A and B are JSON files "
            "that `eval` wrote, or names of models in RESULTS.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Print evaluations as the paper's tables, or compare two.

    The rows of the paper and of later models come first. Figures have 95% intervals by a bootstrap over the queries.
    --compare draws the queries that two models have in common: this paired interval is narrower than those of the
    models alone.

    Example: lotlip-data eval-tables models/eval-mine-iiw.json eval-open-clip-ViT-B-16-openai-iiw.json

    Example: lotlip-data eval-tables --compare runs/a/train/lit/eval-iiw.json runs/a/train/lotlip/eval-iiw.json
    """
    with command("eval-tables", json) as console:
        from lotlip_data.training.evaluation.evaluate import read_results
        from lotlip_data.training.evaluation.report import figures_by_model, tables

        contents = list(map(read_results, results or ()))
        if compare:
            comparison = _compare(compare, contents)
            console.result(comparison.to_dict())
            console.print(comparison.text("latex" if latex else "markdown"))
            return
        if not contents:
            raise UserError("name JSON files that `lotlip-data eval` wrote, or two of them with --compare A B")
        console.result(figures_by_model(contents))
        console.print(tables(contents, "latex" if latex else "markdown"))


def _compare(names: tuple[str, str], contents: Sequence[Mapping[str, Any]]) -> "Comparison":
    """Compare two models, each given as a file or as the name of a model in `contents`."""
    from lotlip_data.training.evaluation.compare import compare
    from lotlip_data.training.evaluation.evaluate import read_results
    from lotlip_data.training.evaluation.results import group_by_model

    models = group_by_model(contents)
    found = []
    for name in names:
        candidates = {name: models[name]} if name in models else group_by_model([read_results(name)])
        found += list(candidates.items())
    (first, first_results), (second, second_results) = found
    labels = (
        (first, second) if first != second else names if names[0] != names[1] else (f"{first} (1)", f"{second} (2)")
    )
    return compare(first_results, second_results, labels)
