"""The command that publishes a dataset."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import Json, RunFolder, command, finish


def publish(
    run: RunFolder,
    repository: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME",
            help="The dataset repository. It is created where it does not exist.",
            show_default=False,
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository as a private one. An existing one must be private.")
    ] = False,
    captions_only: Annotated[
        bool,
        typer.Option(
            "--captions-only", help="Publish URLs, checksums and texts without the images (Parquet files only)."
        ),
    ] = False,
    branch: Annotated[str, typer.Option(help="Branch to publish on. It is created where it does not exist.")] = "main",
    message: Annotated[
        str | None, typer.Option(help="Message of the commits. Default: one that names the dataset.")
    ] = None,
    stats: Annotated[
        bool, typer.Option(help="Also publish the statistics, for which all texts of the dataset are read.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded and removed, and change nothing.")
    ] = False,
    progress: Annotated[
        bool, typer.Option("--progress", help="Only show the progress of the run on the card, while the run goes on.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="MINUTES",
            help="Minutes after which --progress repeats, until the dataset exists. Default: once.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Publish the dataset on the Hugging Face Hub.

    Uploads what differs from the repository; the last commit makes it visible. The token is that of `hf auth login` or
    HF_TOKEN.

    Example: lotlip-data publish runs/mine my-org/my-captions --captions-only
    """
    with command("publish", json, run) as console:
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.pipeline import stages

        if every is not None and not progress:
            raise UserError("--every is the interval of --progress: give both, or neither")
        if progress:
            if captions_only or dry_run or message is not None:
                raise UserError("--progress writes the card alone: leave out --captions-only, --message and --dry-run")
            outcome = stages.publish_progress(run, repository, private=private, branch=branch, every=every)
            finish(console, outcome)
            return
        outcome = stages.publish(
            run,
            repository,
            private=private,
            captions_only=captions_only,
            branch=branch,
            message=message,
            stats=stats,
            dry_run=dry_run,
        )
        finish(console, outcome)
