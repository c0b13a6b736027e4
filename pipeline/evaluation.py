"""`eval`: tasks by name and folder, read, described, evaluated, and written as JSON, Markdown and LaTeX."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.embedders import Embedder, load_embedder
from lotlip_data.training.eval_report import tables
from lotlip_data.training.eval_tasks.base import ImageClasses, ImageTexts, Task, is_partial, read_task
from lotlip_data.training.eval_tasks.tasks import TASKS
from lotlip_data.training.evaluate import evaluate

WORLD = "world"
Say = Callable[[str], None]


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    data: str,
    out: str | None,
    *,
    allow_partial: bool = False,
    device: str | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Evaluate the model (see `load_embedder`) on tasks given as NAME or NAME=FOLDER; NAME alone lies in `data`/NAME.

    The results go to the JSON object `out`, their tables beside it as .md and .tex. Raises UserError for a task that is
    not known or not there, and for a model that cannot be loaded; all tasks are read before any is computed.
    """
    asked = [_task_and_folder(one, data) for one in tasks]
    if len({task.name for task, _ in asked}) < len(asked):
        raise UserError("a task is named twice; name each once")
    read = []
    for task, folder in asked:
        read.append(read_task(task, folder, allow_partial=allow_partial))
        _tell(read[-1], say)
    embedder = load_embedder(model, device)
    about = {"name": model, "text_form": embedder.text_form, "tasks": {one.name: _about(one) for one in read}}
    url = out or default_out(model, [task.name for task, _ in asked])
    results = evaluate(
        embedder,
        url,
        retrieval_sets=[one.in_form(embedder.text_form) for one in read if isinstance(one, ImageTexts)],
        classification_sets=[one for one in read if isinstance(one, ImageClasses)],
        about=about,
        allow_partial=allow_partial,
        say=say,
    )
    _write_tables(url, results, embedder, say)
    return results


def default_out(model: str, tasks: Sequence[str]) -> str:
    """`eval-TASK-TASK.json` beside a model's folder; of other models in the working folder, by their names."""
    names = "-".join(tasks)
    if model.startswith(("open_clip:", "clip:")):
        return storage.normalise(f"eval-{re.sub(r'[^A-Za-z0-9.]+', '-', model).strip('-')}-{names}.json")
    return storage.join(storage.normalise(model), "..", f"eval-{names}.json")


def read_evaluations(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Results that `eval` wrote. Raises UserError for a file that is none."""
    found = []
    for url in urls:
        try:
            one = json.loads(storage.read_bytes(url))
        except (OSError, ValueError) as error:
            raise UserError(f"{url}: no results of an evaluation can be read ({error})") from error
        if not isinstance(one, dict) or not {"retrieval", "classification", "settings"} <= set(one):
            raise UserError(f"{url}: not the results of an evaluation; name what `lotlip-data eval` wrote")
        found.append(one)
    return found


def _task_and_folder(asked: str, data: str) -> tuple[Task, str]:
    name, _, folder = asked.partition("=")
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; one of {', '.join([WORLD, *TASKS])}")
    return TASKS[name], storage.normalise(folder or storage.join(data, name))


def _tell(read: ImageTexts | ImageClasses, say: Say) -> None:
    """One line of what was read, and what is wrong with it."""
    found = read.statistics()
    line = f"{read.task.title}: {found['images']:,} images"
    if isinstance(read, ImageTexts):
        line += (
            f", {found['texts']:,} texts of {found['sub_captions_per_text']:.2f} sub-captions and "
            f"{found['tokens_per_text']:.2f} tokens"
        )
        line += " (the paper: {:.2f} and {:.2f})".format(*read.task.row) if read.task.row else ""
    say(line)
    if is_partial(read):
        say(f"{read.task.title}: a part; of {read.task.images:,} published images {len(read.missing):,} are missing")
    if read.changed:
        say(f"{read.task.title}: other checksums than the texts of the paper's statistics: {', '.join(read.changed)}")


def _about(read: ImageTexts | ImageClasses) -> dict[str, Any]:
    task = read.task
    published = {"images": task.images, "texts": task.images * task.texts_an_image, "row": task.row and list(task.row)}
    return {
        "title": task.title,
        "kind": task.kind,
        "partial": is_partial(read),
        "missing": len(read.missing),
        "changed_files": list(read.changed),
        "statistics": read.statistics(),
        "published": published,
    }


def _write_tables(url: str, results: dict[str, Any], embedder: Embedder, say: Say) -> None:
    base = url.removesuffix(".json")
    storage.replace(f"{base}.md", tables([results]).encode())
    storage.replace(f"{base}.tex", tables([results], "latex").encode())
    for name, found in results["retrieval"].items():
        say(f"{name}: {found['cut']:.1%} of the texts are longer than {embedder.context_length} tokens")
    say(f"{url}, and tables beside the paper's in {base}.md and .tex")
