"""The commands about evaluation."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import Json, command


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command(name="eval")(evaluate)
    app.command(name="eval-tables")(eval_tables)


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
            help="synthetic (default), dci, iiw, sharegpt4v-1k, sharegpt4v-10k, urban-1k, docci, mscoco, flickr30k or "
            "imagenet, and where its files are; again for another.",
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="Where tasks without a folder are, each in one of its name.")] = "eval_data",
    out: Annotated[
        str | None, typer.Option(help="Where the results go. Default: eval.json or eval-TASKS.json beside the folder.")
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Evaluate what there is of a task; its figures are marked so.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … Default: a GPU where there is one.")] = None,
    json: Json = False,
) -> None:
    """Zero-shot retrieval and classification: published tasks, or unseen scenes of the offline world.

    Example: lotlip-data eval runs/demo/train/lotlip/model

    Example: lotlip-data eval models/lotlip-b16 --task iiw=data/iiw --task mscoco=data/coco
    """
    with command("eval", json) as console:
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.manifests.settings.evaluation import SYNTHETIC, current_task_name
        from lotlip_data.pipeline.model_stages import evaluate as evaluation

        tasks = list(map(current_task_name, task or [SYNTHETIC]))
        if SYNTHETIC in tasks and len(tasks) > 1:
            raise UserError(f"the task {SYNTHETIC} is evaluated alone; name it in a command of its own")
        if tasks != [SYNTHETIC]:
            console.result(
                evaluation.evaluate_tasks(checkpoint, tasks, data, out, allow_partial=allow_partial, device=device)
            )
        else:
            model, url = evaluation.model_named(checkpoint), out or evaluation.default_out(checkpoint, [])
            console.result(evaluation.evaluate_model(model, url, device))


def eval_tables(
    results: Annotated[list[str], typer.Argument(help="JSON files that `eval` wrote, of one model or several.")],
    latex: Annotated[bool, typer.Option("--latex", help="LaTeX with booktabs, not Markdown.")] = False,
) -> None:
    """Evaluations of several models as the paper's Tables 4 and 5, the paper's rows above.

    Example: lotlip-data eval-tables models/eval-iiw.json eval-open-clip-ViT-B-16-openai-iiw.json
    """
    with command("eval-tables", False):
        from lotlip_data.training.evaluation.evaluate import read_results
        from lotlip_data.training.evaluation.report import tables

        typer.echo(tables(list(map(read_results, results)), "latex" if latex else "markdown"))
