"""`eval`: tasks by name and folder, read, described, evaluated, and written as JSON, Markdown and LaTeX."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.evaluation import SYNTHETIC, EvaluationEntry, current_task_name
from lotlip_data.manifests.settings.messages import unknown_name
from lotlip_data.pipeline.core.logs import log_prefix
from lotlip_data.pipeline.core.outcome import Outcome
from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot
from lotlip_data.training.evaluation.models import NAME_PREFIXES, load_embedder
from lotlip_data.training.evaluation.report import tables
from lotlip_data.training.evaluation.tasks.base import ImageClasses, ImageTexts, Task, is_partial, read_task
from lotlip_data.training.evaluation.tasks.registry import TASKS
from lotlip_data.training.models.lotlip import reject_training_folder

logger = logging.getLogger(__name__)

_KINDS = ("retrieval", "classification")


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    data: str,
    out: str | None,
    *,
    allow_partial: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Evaluate the model (see `load_embedder`) on tasks given as NAME or NAME=FOLDER; NAME alone lies in `data`/NAME.

    The results go to the JSON object `out`, their tables beside it as .md and .tex. Raises UserError for a task that is
    not known or not there, and for a model that cannot be loaded; all tasks are read before any is computed.
    """
    model = model_named(model)
    asked = [_task_and_folder(one, data) for one in tasks]
    if len({task.name for task, _ in asked}) < len(asked):
        raise UserError("a task is named twice; name each once")
    read, tasks_read = [], {}
    for task, folder in asked:
        read.append(one := read_task(task, folder, allow_partial=allow_partial))
        tasks_read[one.name] = _about(one)
        _tell(one, tasks_read[one.name]["statistics"])
    embedder = load_embedder(model, device)
    about = {"name": model, "text_form": embedder.text_form, "tasks": tasks_read}
    url = out or default_out(model, [task.name for task, _ in asked])
    results = evaluate_zero_shot(
        embedder,
        url,
        retrieval_sets=[one.in_form(embedder.text_form) for one in read if isinstance(one, ImageTexts)],
        classification_sets=[one for one in read if isinstance(one, ImageClasses)],
        about=about,
        allow_partial=allow_partial,
    )
    _write_tables(url, results)
    _write_left_out(url, read, results)
    return results


def default_out(model: str, tasks: Sequence[str]) -> str:
    """`eval-TASK-TASK.json` beside a model's folder; of other models in the working folder, by their names."""
    model, end = canonical_model_name(model), "".join(f"-{task}" for task in tasks) + ".json"
    if model.startswith(NAME_PREFIXES):
        return storage.normalise(f"eval-{re.sub(r'[^A-Za-z0-9.]+', '-', model).strip('-')}{end}")
    return storage.join(model.rpartition("/")[0], f"eval{end}")


def canonical_model_name(model: str) -> str:
    """The model's one name: a folder's without what depends on where the command is given."""
    if model.startswith(NAME_PREFIXES):
        return model
    url = storage.normalise(model)
    return url if "://" in url else os.path.normpath(url)


def model_named(model: str) -> str:
    """As `name_of`, of a model that is to be loaded. Raises UserError for a training's folder."""
    name = canonical_model_name(model)
    if not name.startswith(NAME_PREFIXES):
        reject_training_folder(name)
    return name


def _task_and_folder(asked: str, data: str) -> tuple[Task, str]:
    name, _, folder = asked.partition("=")
    if current_task_name(name) == SYNTHETIC:
        raise UserError(f"the task {name} is generated, so it has no folder; write --task {name}, and nothing else")
    if name not in TASKS:
        raise UserError(f"task {unknown_name(name, [SYNTHETIC, *TASKS])}")
    return TASKS[name], storage.normalise(folder or storage.join(data, name))


def _tell(read: ImageTexts | ImageClasses, found: dict[str, Any]) -> None:
    """One line of what was read, whose statistics were `found`, and what is wrong with it."""
    line = f"{read.task.title}: {found['images']:,} images"
    if isinstance(read, ImageTexts):
        line += (
            f", {found['texts']:,} texts of {found['sub_captions_per_text']:.2f} sub-captions and "
            f"{found['tokens_per_text']:.2f} tokens"
        )
        line += " (the paper: {:.2f} and {:.2f})".format(*read.task.table_1_row) if read.task.table_1_row else ""
    logger.info(line)
    if is_partial(read):
        missing = f", and of those that its files name {len(read.missing):,} are missing" if read.missing else ""
        logger.warning(f"{read.task.title}: a part; {read.task.images:,} images are published{missing}")
    if read.textless:
        logger.warning(
            f"{read.task.title}: {len(read.textless):,} images are without a text, {read.textless[0]} for one"
        )
    if repeated := found.get("repeated_images"):
        logger.info(f"{read.task.title}: {repeated:,} records are of an image that an earlier one has too")
    if read.substituted:
        logger.info(
            f"{read.task.title}: {len(read.substituted):,} images are taken under another name than their records', "
            f"{read.substituted[0]} for one; they may be other pictures"
        )
    if read.changed_files:
        logger.warning(f"{read.task.title}: other checksums than the published ones: {', '.join(read.changed_files)}")


def _about(read: ImageTexts | ImageClasses) -> dict[str, Any]:
    task = read.task
    published = {
        "images": task.images,
        "texts": task.images * task.texts_per_image,
        "row": task.table_1_row and list(task.table_1_row),
    }
    return {
        "title": task.title,
        "kind": task.kind,
        "partial": is_partial(read),
        "missing": len(read.missing),
        "textless": len(read.textless),
        "substituted": len(read.substituted),
        "changed_files": list(read.changed_files),
        "statistics": read.statistics(),
        "published": published,
    }


def _write_tables(url: str, results: dict[str, Any]) -> None:
    base = url.removesuffix(".json")
    storage.replace(f"{base}.md", tables([results]).encode())
    storage.replace(f"{base}.tex", tables([results], "latex").encode())
    logger.info(f"{url}, and tables beside the paper's in {base}.md and .tex")


def _write_left_out(url: str, read: Sequence[ImageTexts | ImageClasses], results: dict[str, Any]) -> None:
    """The images that were not there, had no text or could not be read, one a line; no file where none was."""
    found = results["retrieval"] | results["classification"]
    lines = [
        f"{one.name}\t{why}\t{path}\n"
        for one in read
        for why, paths in (
            ("missing", one.missing),
            ("without a text", one.textless),
            ("damaged", found[one.name]["damaged"]),
        )
        for path in paths
    ]
    if lines:
        left_out = f"{url.removesuffix('.json')}.left_out.tsv"
        storage.replace(left_out, "".join(lines).encode())
        logger.info(f"{left_out}: {len(lines):,} images that were left out, with the reason")


def evaluate(manifest: Manifest, run: Run) -> Outcome:
    """Evaluate each model of the manifest's `train` section on the tasks of its `evaluate` section.

    Results on synthetic scenes go to `RUN/eval/NAME.json`, those on a published task beside the model, where `eval`
    writes them too: `RUN/train/NAME/eval-TASK.json`. A task is not evaluated again when another one is added.
    """
    total = Outcome(did_something=False)
    if not manifest.evaluate:
        logger.info("the manifest's `evaluate` names no task")
        return total
    for name in (entry.folder for entry in manifest.train):
        if not storage.exists(run.training_done(name)):
            total.failed.append(f"{name}: not trained yet; run `lotlip-data train {run.url}`")
            continue
        for entry in manifest.evaluate:
            with log_prefix(name):
                _evaluate_entry(manifest, run, name, entry, total)
    return total


def _evaluate_entry(manifest: Manifest, run: Run, name: str, entry: EvaluationEntry, total: Outcome) -> None:
    """Evaluate the model `name` on one task, and add its results to `total`, or the reason why there are none."""
    model = run.trained_model(name)
    synthetic = entry.task == SYNTHETIC
    out = run.evaluation(name) if synthetic else default_out(model, [entry.task])
    is_new = not storage.exists(out)
    try:
        if synthetic:
            results = evaluate_model(model, out)
        else:
            results = evaluate_tasks(model, [f"{entry.task}={manifest.evaluation_folder(entry)}"], "", out)
    except UserError as error:
        total.failed.append(f"{name}: {error}")
        return
    total.did_something |= is_new
    kinds = {kind: total.figures.get(name, {}).get(kind, {}) | results[kind] for kind in _KINDS}
    total.figures[name] = results | total.figures.get(name, {}) | kinds


def evaluate_model(model: str, out: str, device: str | None = None) -> dict[str, Any]:
    """Evaluate one model's folder on unseen scenes of the offline world; results go to the JSON object `out`."""
    from lotlip_data.synthetic import eval_sets
    from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot as measure
    from lotlip_data.training.evaluation.models import load_embedder

    return measure(
        load_embedder(model, device),
        out,
        retrieval_sets=eval_sets.retrieval_sets(),
        classification_sets=eval_sets.classification_sets(),
    )
