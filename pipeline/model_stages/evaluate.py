"""Evaluates models on published tasks and on synthetic scenes; writes JSON, tables, and the images left out.

`evaluate_tasks` and `evaluate_model` evaluate one model, for `lotlip-data eval`. `evaluate` is the pipeline's stage: it
evaluates every model of a manifest.
"""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import TRAINED_MODEL, Run
from lotlip_data.manifests.settings.evaluation import CUSTOM, SYNTHETIC, EvaluationEntry, current_task_name
from lotlip_data.manifests.settings.messages import unknown_name
from lotlip_data.manifests.wording import count
from lotlip_data.pipeline.core.checks import check_model
from lotlip_data.pipeline.core.findings import require
from lotlip_data.pipeline.core.logs import log_prefix
from lotlip_data.pipeline.core.outcome import Outcome
from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot
from lotlip_data.training.evaluation.groups import GROUPS, figures_by_task
from lotlip_data.training.evaluation.models import NAME_PREFIXES, load_embedder
from lotlip_data.training.evaluation.report import tables
from lotlip_data.training.evaluation.tasks.base import ImageChoices, ImageClasses, ImageTexts, ReadImages, Task
from lotlip_data.training.evaluation.tasks.custom import custom_task
from lotlip_data.training.evaluation.tasks.reading import is_partial, read_task
from lotlip_data.training.evaluation.tasks.registry import TASKS
from lotlip_data.training.models import open_clip_models
from lotlip_data.training.models.lotlip import reject_training_folder

logger = logging.getLogger(__name__)


def evaluate(manifest: Manifest, run: Run) -> Outcome:
    """Evaluate each model of the manifest's `train` section on the tasks of its `evaluate` section.

    Results on synthetic scenes go to `RUN/eval/NAME.json`. Results on a published task go beside the model, as those of
    `lotlip-data eval` do: `RUN/train/NAME/eval-TASK.json`. A task that is added later does not repeat the others.
    """
    total = Outcome(did_something=False)
    if not manifest.evaluate:
        logger.info("nothing to evaluate: the manifest's `evaluate` section has no task")
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
    """Evaluate the model `name` on one task, and add the results or the error to `total`."""
    model = run.trained_model(name)
    is_synthetic = entry.task == SYNTHETIC
    out = run.evaluation(name) if is_synthetic else default_results_url(model, [entry.label])
    is_new = not storage.exists(out)
    try:
        if is_synthetic:
            results = evaluate_model(model, out)
        else:
            task = f"{entry.task}:{entry.name}" if entry.name else entry.task
            results = evaluate_tasks(model, [f"{task}={manifest.evaluation_folder(entry)}"], "", out)
    except UserError as error:
        total.failed.append(f"{name}: {error}")
        return
    total.did_something |= is_new
    earlier = total.figures.get(name, {})
    by_group = {group: earlier.get(group, {}) | results.get(group, {}) for group in GROUPS}
    total.figures[name] = results | earlier | by_group


def evaluate_model(model: str, out: str, device: str | None = None, name: str | None = None) -> dict[str, Any]:
    """Evaluate a model on unseen synthetic scenes.

    Args:
        model: See `load_embedder`.
        out: Path or URL of the JSON object for the results.
        device: Torch device. Default: a GPU if there is one.
        name: Name of the model in the results. Default: `display_name`.

    Returns:
        The results, as `evaluate_zero_shot` returns them.
    """
    from lotlip_data.synthetic import eval_sets

    _check_model(model)
    return evaluate_zero_shot(
        load_embedder(model, device),
        out,
        retrieval_sets=eval_sets.retrieval_sets(),
        classification_sets=eval_sets.classification_sets(),
        name=name or display_name(model),
    )


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    data: str,
    out: str | None,
    *,
    allow_partial: bool = False,
    device: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on published tasks and sets of one's own. All are read before the first one is evaluated.

    Args:
        model: See `load_embedder`.
        tasks: Tasks as NAME=FOLDER, or as NAME for the folder `data`/NAME; sets of one's own as `custom=PATH` or
            `custom:NAME=PATH`.
        data: Root folder of tasks that are given without a folder.
        out: Path or URL of the JSON object for the results. Default: `default_results_url`. The tables go beside it,
            with the endings .md and .tex.
        allow_partial: Accept a part of a task, and mark its figures.
        device: Torch device. Default: a GPU if there is one.
        name: Name of the model in the results. Default: `display_name`.

    Returns:
        The results, as `evaluate_zero_shot` returns them.

    Raises:
        UserError: A task is unknown, is given twice or is not in its folder, or the model cannot be loaded.
    """
    model = resolve_model_name(model)
    folders = [_parse_task(argument, data) for argument in tasks]
    if len({task.name for task, _ in folders}) < len(folders):
        raise UserError("a task is named twice; name each task once")
    _check_model(model)  # before the images of the tasks are read
    task_images: list[ReadImages] = []
    descriptions: dict[str, dict[str, Any]] = {}
    for task, folder in folders:
        images = read_task(task, folder, allow_partial=allow_partial)
        task_images.append(images)
        descriptions[images.name] = _describe(images)
        _log_description(images, descriptions[images.name]["statistics"])
    embedder = load_embedder(model, device)
    url = out or default_results_url(model, [task.name for task, _ in folders])
    results = evaluate_zero_shot(
        embedder,
        url,
        retrieval_sets=[images.in_form(embedder.text_form) for images in task_images if isinstance(images, ImageTexts)],
        classification_sets=[images for images in task_images if isinstance(images, ImageClasses)],
        selection_sets=[images for images in task_images if isinstance(images, ImageChoices)],
        about={"text_form": embedder.text_form, "tasks": descriptions},
        allow_partial=allow_partial,
        name=name or display_name(model),
    )
    _write_tables(url, results)
    _write_left_out(url, task_images, results)
    return results


def default_results_url(model: str, tasks: Sequence[str]) -> str:
    """Where results go by default: `eval-TASK-TASK.json` beside the `model` folder of a training.

    Beside any other folder, and in the working folder for a model of open_clip or transformers, the file's name has the
    model's name too: several models may lie side by side.
    """
    model, ending = canonical_model_name(model), "".join(f"-{task}" for task in tasks) + ".json"
    if model.startswith(NAME_PREFIXES):
        return storage.normalise(f"eval-{re.sub(r'[^A-Za-z0-9.]+', '-', model).strip('-')}{ending}")
    parent, _, name = model.rstrip("/").rpartition("/")
    return storage.join(parent, f"eval{ending}" if name == TRAINED_MODEL else f"eval-{name}{ending}")


def canonical_model_name(model: str) -> str:
    """One name per model: different paths of a folder, also relative ones, give the same name."""
    if model.startswith(NAME_PREFIXES):
        return model
    url = storage.normalise(model)
    return url if "://" in url else os.path.normpath(url)


def display_name(model: str) -> str:
    """The name of a model in results: RUN/TRAINING for a training of a run, otherwise the last part of its path."""
    name = canonical_model_name(model)
    if name.startswith(NAME_PREFIXES):
        return name
    parts = name.rstrip("/").split("/")
    if len(parts) > 1 and parts[-1] == TRAINED_MODEL:
        parts.pop()
    if len(parts) > 2 and parts[-2] == "train":
        return f"{parts[-3]}/{parts[-1]}"
    return parts[-1]


def resolve_model_name(model: str) -> str:
    """The canonical name of a model that is to be loaded. Raises UserError for the folder of a training."""
    name = canonical_model_name(model)
    if not name.startswith(NAME_PREFIXES):
        reject_training_folder(name)
    return name


def _check_model(model: str) -> None:
    """Raises UserError if a model of the hub is not available, or open_clip knows no such model."""
    kind, _, name = model.partition(":")
    if kind == "clip":
        require([check_model("model", name)])
    elif kind == "open_clip" and (weights := open_clip_models.missing_weights(name)):
        require([check_model(f"model {model}", weights)])


def _parse_task(argument: str, data: str) -> tuple[Task, str]:
    """The task and its folder. Raises UserError if the task is unknown or generated."""
    name, _, folder = argument.partition("=")
    kind, _, own_name = name.partition(":")
    if kind == CUSTOM:
        return custom_task(folder or storage.join(data, own_name or CUSTOM), own_name)
    if current_task_name(name) == SYNTHETIC:
        raise UserError(f"the task {name} is generated, so it has no folder; write --task {name}")
    if name not in TASKS:
        raise UserError(f"task {unknown_name(name, [SYNTHETIC, *TASKS, CUSTOM])}")
    return TASKS[name], storage.normalise(folder or storage.join(data, name))


def _log_description(images: ReadImages, statistics: dict[str, Any]) -> None:
    """Log what was read, and how it differs from the published set."""
    task = images.task
    summary = f"{task.title}: {statistics['images']:,} images"
    if isinstance(images, ImageTexts):
        summary += (
            f", {statistics['texts']:,} texts with {statistics['sub_captions_per_text']:.2f} sub-captions and "
            f"{statistics['tokens_per_text']:.2f} BERT tokens each on average"
        )
        summary += " (paper: {:.2f} and {:.2f})".format(*task.table_1_row) if task.table_1_row else ""
    if isinstance(images, ImageTexts) and images.distractors:
        summary += f"; {count(images.distractors, 'image')} without texts to compare them with"
    if isinstance(images, ImageChoices):
        queries = ", ".join(f"{category} {number:,}" for category, number in statistics["queries"].items())
        summary += f" with {count(len(images.paths), 'region')}; queries: {queries}"
    logger.info(summary)
    if is_partial(images):
        is_counted = task.is_published and task.images
        missing = f"; {count(len(images.missing), 'image')} that its files name: missing" if images.missing else ""
        whole = f"the whole published set of {task.images:,} images" if is_counted else "the whole set"
        logger.warning(f"{task.title}: not {whole}{missing}")
    if images.textless:
        without_text = count(len(images.textless), "image")
        logger.warning(f"{task.title}: {without_text} without a text, for example {images.textless[0]}")
    if unanswerable := statistics.get("unanswerable"):
        logger.info(f"{task.title}: {count(unanswerable, 'query')} with a wrong caption that equals a right one")
    if repeated := statistics.get("repeated_images"):
        logger.info(f"{task.title}: {repeated:,} records have the same image as an earlier record")
    if images.substituted:
        logger.info(
            f"{task.title}: {len(images.substituted):,} images have another file name than their records, for example "
            f"{images.substituted[0]}; check that they are the same pictures"
        )
    if images.changed_files:
        logger.warning(f"{task.title}: checksums differ from the published ones: {', '.join(images.changed_files)}")


def _describe(images: ReadImages) -> dict[str, Any]:
    """What the results record about the images and texts of a task."""
    task = images.task
    is_counted = task.is_published and task.kind != "selection"
    published = {
        "images": task.images if is_counted else None,
        "texts": task.images * task.texts_per_image if is_counted else None,
        "row": task.table_1_row and list(task.table_1_row),
    }
    return {
        "title": task.title,
        "kind": task.kind,
        "partial": is_partial(images),
        "missing": len(images.missing),
        "textless": len(images.textless),
        "substituted": len(images.substituted),
        "changed_files": list(images.changed_files),
        "statistics": images.statistics(),
        "published": published,
    }


def _write_tables(url: str, results: dict[str, Any]) -> None:
    base = url.removesuffix(".json")
    storage.replace(f"{base}.md", tables([results]).encode())
    storage.replace(f"{base}.tex", tables([results], "latex").encode())
    logger.info(f"results: {url}; tables with the paper's results: {base}.md and {base}.tex")


def _write_left_out(url: str, task_images: Sequence[ReadImages], results: dict[str, Any]) -> None:
    """List the images that are missing, have no text or cannot be read, one per line. Without any, write no file."""
    by_task = figures_by_task(results)
    lines = [
        f"{images.name}\t{reason}\t{path}\n"
        for images in task_images
        for reason, paths in (
            ("missing", images.missing),
            ("without a text", images.textless),
            ("damaged", by_task[images.name]["damaged"]),
        )
        for path in paths
    ]
    if lines:
        left_out = f"{url.removesuffix('.json')}.left_out.tsv"
        storage.replace(left_out, "".join(lines).encode())
        logger.info(f"left out: {count(len(lines), 'image')}; {left_out} lists them with the reasons")
