"""The commands that make sure that machines are ready: checks, and the models of a manifest."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, ManifestFile, command, finish

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def doctor(
    manifest: Annotated[
        str | None,
        typer.Argument(
            metavar="[MANIFEST]", help="Also check what this manifest needs: lists, models, GPUs and engines."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Also check the storage of this run: a path or an fsspec URL. Without MANIFEST, the run's manifest.",
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Check every node of the cluster in RAY_ADDRESS too, or start Ray on this machine."),
    ] = False,
    json: Json = False,
) -> None:
    """Check machine, cluster and models before a run.

    One line per check: ok, warning or error, with the fix. The exit code is 1 if there is an error.

    Example: lotlip-data doctor my-images.yaml --run s3://bucket/run --ray
    """
    with command("doctor", json) as console:
        from lotlip_data.manifests.wording import count
        from lotlip_data.pipeline import inspection

        diagnosis = inspection.doctor(manifest, run, ray=ray)
        console.result(diagnosis.figures)
        for line in diagnosis.lines:
            console.print(line, _COLOURS[line.partition(" ")[0]])
        warnings = diagnosis.figures["counts"]["warning"]
        console.print(f"doctor: {count(len(diagnosis.problems), 'error')}, {count(warnings, 'warning')}")
        if diagnosis.problems:
            raise typer.Exit(FAILED)


def fetch_models(
    manifest: ManifestFile,
    ray: Annotated[
        bool, typer.Option("--ray", help="Download on every node of the cluster in RAY_ADDRESS, the same commits.")
    ] = False,
    json: Json = False,
) -> None:
    """Download a manifest's models, so that runs need no hub.

    The files go to the hub's cache (HF_HOME or HF_HUB_CACHE names another folder). ShareGPT4V is converted, and
    InstructBLIP's language model exported where vLLM runs it. An interrupted download resumes.

    Example: lotlip-data fetch-models my-images.yaml
    """
    with command("fetch-models", json) as console:
        from lotlip_data.pipeline import stages

        finish(console, stages.fetch_models(manifest, ray=ray))
