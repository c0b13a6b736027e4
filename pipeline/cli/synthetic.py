"""The commands about the synthetic scenes of the demo and the tests."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import Json, command

app = CommandLine(help="Measure captioners on synthetic scenes.")


@app.command()
def accuracy(
    captioner: Annotated[list[str], typer.Argument(help="Names of captioners, such as tiny-llava.")],
    scenes: Annotated[int, typer.Option(min=1, help="Number of unseen scenes to caption.")] = 500,
    engine: Annotated[str, typer.Option(help="Engine to use: vllm, transformers or auto.")] = "auto",
    json: Json = False,
) -> None:
    """Precision and recall of the facts in captions of unseen scenes.

    A fact is a shape with its colour, size and place.

    Example: lotlip-data synthetic accuracy tiny-llava tiny-sharegpt4v tiny-instructblip
    """
    with command("accuracy", json) as console:
        from lotlip_data.pipeline.caption_accuracy import accuracy as measure
        from lotlip_data.pipeline.recaptioning.config import resolve_captioners

        figures = {}
        for job in resolve_captioners(captioner, {"engine": engine}):
            name, score = job.config.name, measure(job.config, scenes, engine)
            figures[name] = {"facts_precision": score.precision, "facts_recall": score.recall}
            console.print(f"{name}: precision {score.precision:.4f}, recall {score.recall:.4f}, {scenes} scenes")
        console.result(figures)
