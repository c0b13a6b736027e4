"""Functions that read a manifest, a run or a model: plan, doctor, status, stats, verify, report and evaluate.

The commands of the same names and the Python API (docs/guides/notebook.md) both call these functions. Manifests and
runs are given as to the functions of `stages`.
"""

import logging
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import frozen, held_for
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.findings import Level
from lotlip_data.pipeline.core.outcome import Inspection
from lotlip_data.pipeline.stages import ManifestLike, RunLike, load_manifest, open_run

if TYPE_CHECKING:
    from lotlip_data.pipeline.planning.hardware import Hardware

logger = logging.getLogger(__name__)

_NOT_PHOTOS = (
    "no --task is given, so the model is measured on synthetic scenes (simple shapes), which says nothing about "
    "photographs. For these, give a published task or your own images: --task iiw=FOLDER, --task custom=FOLDER"
)


def plan(
    manifest: ManifestLike,
    run: RunLike | None = None,
    *,
    rows: int = 20_000,
    hardware: "Hardware | Mapping[str, Any] | None" = None,
    speeds: Mapping[str, float] | None = None,
    measure: int = 0,
    assumptions: bool = False,
) -> Inspection:
    """What a manifest would download, caption, store and cost, from a sample of each of its lists. Writes nothing.

    Args:
        manifest: The manifest.
        run: An existing run of this manifest; finished work and measured speeds are used.
        rows: Approximate number of rows to read per source.
        hardware: The cluster, as `Hardware` or a mapping of its fields, such as {"gpus": 32, "price": 2.5}.
        speeds: Images per second of one actor, by captioner.
        measure: Caption this many images here with each captioner without a given speed, and score them with each
            scorer without a known speed, to measure it. 0: do not.
        assumptions: Print every assumption too. `figures` has them in each case.
    """
    from lotlip_data.pipeline.planning import cost as plan_cost
    from lotlip_data.pipeline.planning import lists_text
    from lotlip_data.pipeline.planning import scores as plan_scores
    from lotlip_data.pipeline.planning.hardware import Hardware
    from lotlip_data.pipeline.planning.lists import plan_lists
    from lotlip_data.pipeline.planning.storage import measure_storage
    from lotlip_data.pipeline.planning.throughput import Speed, measure_speed
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.job_checks import check_planned, check_prompts, new_jobs, new_texts

    if not isinstance(hardware, Hardware):
        hardware = Hardware(**(hardware or {}))
    manifest, existing = load_manifest(manifest), None if run is None else open_run(run)
    if existing:
        held_for(manifest, existing)
    jobs = resolve_captioners(manifest.captioners) if manifest.captioners else []
    _check_speeds(speeds or {}, [job.config.name for job in jobs])
    measured = measure_storage(existing) if existing else None
    lists = plan_lists(manifest, rows, measured, hardware, existing)
    planned = [check for job in new_jobs(jobs, existing) for check in check_planned(job, hardware.assumed_gpus)]
    lists.problems += [str(check) for check in check_prompts(new_texts(jobs, existing))]
    lists.problems += [str(check) for check in planned if check.level is Level.ERROR]
    lists.notes += [str(check) for check in planned if check.level is Level.WARNING]
    lines, details = lists_text.format_text(lists), lists_text.format_assumptions(lists)
    known = {name: Speed(value, "as given") for name, value in (speeds or {}).items()}
    for job in jobs if measure else []:
        if job.config.name not in known:
            known[job.config.name] = measure_speed(job, measure)
    cost, scoring = None, None
    if lists.images or existing:
        cost = plan_cost.plan_cost(lists.images or 0, jobs, hardware, known, existing, lists.shards)
        lines += plan_cost.format_text(cost, manifest.imported_names)
        details += plan_cost.format_assumptions(cost)
        if manifest.scores:
            scores = plan_scores.plan_scores(manifest, lists.images or 0, existing, measure)
            lines += plan_scores.format_text(scores)
            details += [f"assumption   {assumption}" for assumption in scores.assumes]
            scoring = scores.to_dict()
    if details:
        lines += details if assumptions else [f"assumptions  {len(details)}, shown with --assumptions"]
    figures = lists.to_dict() | {"captioning": cost.to_dict() if cost else None}
    if scoring:
        figures["scoring"] = scoring
    return Inspection(figures, lines, lists.problems)


def _check_speeds(speeds: Mapping[str, float], names: Sequence[str]) -> None:
    for name, speed in speeds.items():
        if name not in names or not 1e-6 <= speed <= 1e6:
            known = ", ".join(names)
            raise UserError(
                f"--speed {name}={speed:g}: give NAME=IMAGES, 0.000001 to 1,000,000 images per second of one of {known}"
            )


def doctor(manifest: ManifestLike | None = None, run: RunLike | None = None, *, ray: bool = False) -> Inspection:
    """Whether this machine, a cluster, a manifest's models and a run's storage are ready. Downloads no weights.

    Args:
        manifest: Also check what this manifest needs: the files of its lists, its models, GPUs and engines.
        run: Also check the storage of this run, and what its manifest needs if none is given.
        ray: Check every node of the cluster in RAY_ADDRESS too, or start Ray on this machine.
    """
    from lotlip_data.pipeline.readiness.doctor import diagnose

    existing = None if run is None else open_run(run)
    if manifest is not None:
        manifest = load_manifest(manifest)
    elif existing and _has_manifest(existing):
        manifest = frozen(existing)
    diagnosis = diagnose(manifest, existing, ray)
    return Inspection(diagnosis.to_dict(), diagnosis.lines(), diagnosis.problems)


def _has_manifest(run: Run) -> bool:
    """Whether a run has a manifest that can be reached; the check of its storage says why not."""
    try:
        return storage.exists(run.manifest)
    except (UserError, OSError):
        return False


def status(run: RunLike, *, failures: bool = False) -> Inspection:
    """The progress and the speed of a run, what is stale, and the next command; from its folder alone.

    Args:
        run: The run's folder.
        failures: Also count download failures by reason and host, which reads one file per shard.
    """
    from lotlip_data.pipeline.reporting.next_step import find_not_started, find_stale, next_command
    from lotlip_data.pipeline.reporting.status import get_status
    from lotlip_data.pipeline.reporting.status_table import format_table

    run = open_run(run)
    manifest = frozen(run)
    figures = get_status(run, failures=failures)
    figures["texts"] = {captioner: list(names) for captioner, names in manifest.several_texts.items()}
    figures["imported"] = manifest.imported_names
    figures["not_started"] = find_not_started(manifest, figures)
    figures["stale"] = find_stale(run, manifest, figures)
    figures["next"] = next_command(run, manifest, figures, figures["stale"])
    return Inspection(dict(figures), format_table(figures))


def captioners(run: RunLike) -> Inspection:
    """The captioners of a run: what each has captioned, and whether the manifest and the dataset name it."""
    from lotlip_data.pipeline.recaptioning.stored_captioners import format_text, stored_captioners

    run = open_run(run)
    stored = stored_captioners(run, frozen(run))
    return Inspection({entry.name: entry.to_dict() for entry in stored}, format_text(run, stored))


def stats(run: RunLike, *, labels: str | PathLike[str] | None = None) -> Inspection:
    """The paper's Table 6 for the run's dataset: images, texts, sub-captions and tokens per text, and flags; and the
    distribution of each score.

    Args:
        run: The run's folder.
        labels: A CSV or Parquet file that says what is correct, with `uid`, `correct` (0 or 1), and where it is about a
            text `captioner` and `sub_caption` (counted from 0). `calibration` compares each score with it.
    """
    from lotlip_data.pipeline.dataset import calibration
    from lotlip_data.pipeline.dataset.stats import dataset_stats, table

    run = _existing(open_run(run))
    compared = None if labels is None else calibration.calibrate(run, fspath(labels))
    figures = dataset_stats(run)
    if compared is None:
        return Inspection(figures, table(figures))
    return Inspection(figures | {"calibration": compared}, table(figures) + calibration.table(compared))


def verify(run: RunLike) -> Inspection:
    """Read every file of the run that a later stage reads, and compare it with its recorded sha256.

    Lists, images, captions, the dataset, features and models. `problems` names what is damaged, missing or foreign, and
    the remedy. `lines` and the figures also have notes: captions of samples that have changed since. A run without its
    earlier files, such as a copied dataset, is verified as far as it goes.
    """
    from lotlip_data.pipeline.verification.run import verify_run

    check = verify_run(_existing(open_run(run)))
    problems = check.problems
    last = wording.count(len(problems), "problem") if problems else "everything is complete and intact"
    lines = [*(tally.line() for tally in check.tallies), *check.notes, *problems, f"verify: {last}"]
    return Inspection(check.to_dict(), lines, problems)


def report(
    run: RunLike,
    out: str | PathLike[str] | None = None,
    *,
    price: float | None = None,
    stats: bool = True,
    labels: str | PathLike[str] | None = None,
) -> Inspection:
    """Write one self-contained HTML page about a run: URLs, downloads, failures, captions, dataset and cost.

    Args:
        run: The run's folder.
        out: The file to write. Default: RUN/report.html.
        price: Price per GPU-hour in any currency, for the cost so far.
        stats: Also count the whole dataset for Table 6 and the distributions of scores, and look for the best and the
            worst texts, which takes long on a large dataset.
        labels: A file of labels, as for `stats`, with which the scores are compared.
    """
    from lotlip_data.pipeline.dataset.calibration import calibrate
    from lotlip_data.pipeline.dataset.stats import dataset_stats
    from lotlip_data.pipeline.reporting.html import render_html
    from lotlip_data.pipeline.reporting.pictures import pick_pictures
    from lotlip_data.pipeline.reporting.report import build_report
    from lotlip_data.pipeline.reporting.score_examples import find_examples
    from lotlip_data.pipeline.reporting.trainings import read_losses

    run = open_run(run)
    page = fspath(out) if out is not None else run.report
    if storage.is_folder(page):
        raise UserError(f"{page}: is a folder; name the file to write")
    compared = None if labels is None else calibrate(run, fspath(labels))
    figures = build_report(run, price)
    table_6 = examples = None
    try:
        table_6 = dataset_stats(run) if stats and figures["dataset"] else None
        examples = find_examples(run) if table_6 and "scores" in table_6 else None
    except UserError as error:
        figures["problems"].append(str(error))
    figures["problems"] += examples.problems if examples else []
    figures |= {"calibration": compared} if compared else {}
    pictures, picture_problems = pick_pictures(run)
    losses, loss_problems = read_losses(run)
    figures["problems"] = list(dict.fromkeys([*figures["problems"], *picture_problems, *loss_problems]))
    storage.replace(page, render_html(figures, table_6, pictures, losses, examples, compared).encode())
    return Inspection(figures, [f"report: {page}"], figures["problems"])


def evaluate(
    model: str | PathLike[str],
    tasks: Sequence[str] = (),
    *,
    data: str | PathLike[str] = "eval_data",
    out: str | PathLike[str] | None = None,
    allow_partial: bool = False,
    device: str | None = None,
    name: str | None = None,
) -> Inspection:
    """Zero-shot retrieval, classification and selection of captions of a model.

    Args:
        model: A trained model's folder, such as RUN/train/lotlip/model; `open_clip:MODEL/WEIGHTS`; `clip:HUB_ID`.
        tasks: Published tasks as NAME or NAME=FOLDER; images and texts of your own as `custom=PATH` or
            `custom:NAME=PATH`, where PATH is a folder or a table. Default: unseen synthetic scenes.
        data: Root folder of tasks that are given without a folder: DATA/NAME.
        out: The JSON file to write. Default: that of `default_results_url`, beside the model's folder.
        allow_partial: Evaluate the part of a task that exists; its figures are marked.
        device: `cpu`, `cuda`, `cuda:1`, …. Default: a GPU where one is available.
        name: Name of the model in results and tables. Default: RUN/TRAINING, or the name of the folder.
    """
    from lotlip_data.manifests.settings.evaluation import SYNTHETIC, current_task_name
    from lotlip_data.pipeline.model_stages import evaluate as evaluation

    model, file = fspath(model), None if out is None else fspath(out)
    names = list(map(current_task_name, tasks or [SYNTHETIC]))
    if SYNTHETIC in names and len(names) > 1:
        raise UserError(f"the task {SYNTHETIC} is evaluated alone; name it in a command of its own")
    if names != [SYNTHETIC]:
        results = evaluation.evaluate_tasks(
            model, names, fspath(data), file, allow_partial=allow_partial, device=device, name=name
        )
        return Inspection(results, _scores(results))
    if not tasks:
        logger.warning(_NOT_PHOTOS)
    model = evaluation.resolve_model_name(model)
    results = evaluation.evaluate_model(model, file or evaluation.default_results_url(model, []), device, name)
    return Inspection(results, [f"synthetic scenes, {line}" for line in _scores(results)])


def _scores(results: Mapping[str, Any]) -> list[str]:
    """One line per task. A part of a set is marked."""
    from lotlip_data.training.evaluation.evaluate import headline
    from lotlip_data.training.evaluation.groups import figures_by_task

    marks = {name: " (partial)" for name, task in results["settings"].get("tasks", {}).items() if task["partial"]}
    return [f"{name}{marks.get(name, '')}: {headline(figures)}" for name, figures in figures_by_task(results).items()]


def _existing(run: Run) -> Run:
    """The run. Raises UserError where it has neither a manifest nor a dataset. A copied dataset has no manifest."""
    if not storage.exists(run.dataset):
        frozen(run)
    return run
