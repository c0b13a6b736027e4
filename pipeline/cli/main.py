"""The command line: every command, in the order of `lotlip-data --help`."""

from collections.abc import Callable
from typing import Annotated

import typer

from lotlip_data.pipeline.cli import (
    captioners,
    convert,
    evaluate,
    export,
    inspect,
    lists,
    publish,
    readiness,
    stages,
    study,
    synthetic,
    train,
    use,
)
from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import INVALID

app = CommandLine(
    name="lotlip-data",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Recaption images at scale with long texts, and train LoTLIP on them.",
    epilog="`lotlip-data COMMAND --help` shows the options of a command and an example.",
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"lotlip-data {version('lotlip-data')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of `lotlip-data` itself."""


FULL_INSTALL = frozenset(
    {
        "cv2",
        "imagehash",
        "img2dataset",
        "pandas",
        "ray",
        "safetensors",
        "scipy",
        "sentencepiece",
        "tensorboardX",
    }
    | {"torch", "transformers", "webdataset"}
)
"""Modules that the extra `full` of pyproject.toml installs and a plain install does not."""

Commands = dict[str, Callable[..., None]]

PLANNING: Commands = {
    "doctor": readiness.doctor,
    "fetch-models": readiness.fetch_models,
    "sources": lists.sources,
    "manifest-schema": lists.manifest_schema,
    "plan": lists.plan,
}
STAGES: Commands = {
    "run": stages.run,
    "download": stages.download,
    "recaption": stages.recaption,
    "import": stages.import_captions,
    "score": stages.score,
    "shard": stages.shard,
    "features": train.features,
    "train": train.train,
    "eval": evaluate.evaluate,
}
INSPECTION: Commands = {
    "status": inspect.status,
    "stats": inspect.stats,
    "verify": inspect.verify,
    "publish": publish.publish,
    "report": inspect.report,
    "view": inspect.view,
    "export": export.export,
}
MODELS: Commands = {"eval-tables": evaluate.eval_tables, "embed": use.embed, "search": use.search}
DEMO: Commands = {
    "demo": stages.demo,
    "study": study.study,
    "study-page": study.study_page,
    "study-scores": study.study_scores,
}

for panel, commands in {
    "Before a run": PLANNING,
    "Stages, in their order (`run` calls all but features)": STAGES,
    "A run and its dataset": INSPECTION,
    "Trained models": MODELS,
    "Synthetic scenes, offline": DEMO,
}.items():
    for name, function in commands.items():
        app.command(name, rich_help_panel=panel)(function)
app.add_typer(captioners.app, name="captioners", rich_help_panel="A run and its dataset")
app.add_typer(convert.app, name="convert", rich_help_panel="Trained models")
app.add_typer(synthetic.app, name="synthetic", rich_help_panel="Synthetic scenes, offline")
app.add_typer(synthetic.app, name="world", hidden=True)  # the group's name in earlier releases


def main() -> None:
    """The console script. A package that only the extra `full` installs is named in one line if it is missing."""
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in FULL_INSTALL:
            raise
        typer.echo(
            f"error: this command needs the Python package {package}, which is not installed. "
            "Install what all commands need: pip install 'lotlip-data[full]'; in a clone: pip install '.[full]'"
        )
        raise SystemExit(INVALID) from None


if __name__ == "__main__":
    main()
