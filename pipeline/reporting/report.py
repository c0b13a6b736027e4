"""The content of a run's report: URLs, downloads and failures, captions, dataset, models and cost so far.

`html.render_html` makes a page of it. One damaged file costs its own part of the report only: `problems` names the file
and the remedy, and everything else is reported.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, TypedDict, TypeVar

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.dataset_index import read_dataset_summary
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.manifest import frozen
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.captioners import by_captioner
from lotlip_data.manifests.text_stats import TextTally
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation.exclusions import DUPLICATE, EVALUATION_IMAGE, NEAR_DUPLICATE
from lotlip_data.pipeline.downloading.stage import read_summary
from lotlip_data.pipeline.reporting.status import CaptionerStatus, get_status
from lotlip_data.pipeline.url_lists.partition import Partition, load_partition
from lotlip_data.training.evaluation.groups import GROUPS

NO_FAILURES: dict[str, Any] = {"asked": 0, "fetched": 0, "reasons": {}, "hosts": {}}
EXAMPLE_CHARACTERS = 3000
"""Longest example text shown. The longest captions that exist are shown in full."""
REASON_CHARACTERS = 120
"""Longest reason shown for an image without a caption."""
EXAMPLES_PER_FLAG = 2
SAMPLED_SHARDS = 20
"""Maximum number of caption shards per captioner, evenly spaced, from which flags, examples and lengths are taken."""
TOP_REASONS = 10
"""Most frequent reasons shown for images without a caption."""


class CaptionRow(TypedDict):
    """The columns of a caption shard that the report reads."""

    uid: str
    text: str | None
    tokens: int | None
    flags: list[str]
    error: str | None


@dataclass
class CaptionSample:
    """What a sample of one captioner's shards holds."""

    tokens: TextTally = field(default_factory=TextTally)
    """Texts with a token count, by their tokens."""
    words: TextTally = field(default_factory=TextTally)
    """All texts, by their words."""
    flags: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """By flag, `uid` and `text` of up to EXAMPLES_PER_FLAG captions."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Images without a caption, by reason."""
    damaged: list[str] = field(default_factory=list)
    """Shards that cannot be read, each with its remedy."""

    @property
    def has_token_counts(self) -> bool:
        """Whether every text has a token count. Imported captions have none."""
        return self.tokens.texts == self.words.texts

    @property
    def lengths(self) -> TextTally:
        """Lengths of the texts in tokens where every text has a token count, otherwise in words."""
        return self.tokens if self.has_token_counts else self.words

    def add(self, row: CaptionRow) -> None:
        """Count one row of a caption shard."""
        text = row["text"]
        if text is None:
            self.rejected[_truncate(str(row["error"]), REASON_CHARACTERS)] += 1
            return
        self.words.add(len(text.split()))
        if row["tokens"] is not None:
            self.tokens.add(row["tokens"])
        self.flags.update(row["flags"])
        for flag in row["flags"]:
            examples = self.examples.setdefault(flag, [])
            if len(examples) < EXAMPLES_PER_FLAG:
                examples.append({"uid": row["uid"], "text": _truncate(text, EXAMPLE_CHARACTERS)})


def build_report(run: Run, price: float | None = None) -> dict[str, Any]:
    """Return the content of the report, in the form of `report --json`.

    Args:
        run: The run.
        price: Price per GPU-hour, in any currency.

    Raises:
        UserError: The folder holds no run, or its partition (lists/plan.json) is damaged. Any other damaged file is
            named in `problems`.
    """
    if not storage.exists(run.manifest) and not storage.exists(run.plan):
        raise UserError(f"{run.url}: there is no run; name the folder that `lotlip-data download` filled")
    status, problems = get_status(run), list[str]()
    plan = load_partition(run)
    dataset = _or_problem(problems, None, lambda: _dataset(run))
    texts = _several_texts(run)
    names = [name for _, group in by_captioner(status["captioners"], texts) for name in group]
    captioners = {name: _captioner(run, name, status["captioners"][name], price, problems) for name in names}
    return {
        "run": run.url,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": metadata.version("lotlip-data"),
        "manifest": _read_text(run.manifest),
        "plan": plan and asdict(plan),
        "status": status,
        "failures": _or_problem(problems, NO_FAILURES, lambda: _failures(run)),
        "captioners": captioners,
        "texts": {name: list(own) for name, own in texts.items()},
        "duplicates": _duplicates(plan, dataset),
        "dataset": dataset,
        "trained": _evaluations(status["evaluated"], problems),
        "price": price,
        "problems": problems,
    }


def _several_texts(run: Run) -> dict[str, tuple[str, ...]]:
    """By captioner of the run's manifest that makes several texts for each image, their names."""
    try:
        return frozen(run).several_texts
    except UserError:  # the page shows the manifest as it is
        return {}


Result = TypeVar("Result")


def _or_problem(problems: list[str], default: Result, read: Callable[[], Result]) -> Result:
    """Return what `read` returns. If it raises UserError, add the message to `problems` and return `default`."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return default


def _read_text(url: str) -> str | None:
    return storage.read_bytes(url).decode(errors="replace") if storage.exists(url) else None


def _captioner(
    run: Run, name: str, counts: CaptionerStatus, price: float | None, problems: list[str]
) -> dict[str, Any]:
    """Return the counts of one captioner with its time, its cost, and what its captions are like."""
    timed = ledger.throughput(ledger.captioned(run, name))
    hours, gpu_hours = timed.seconds / 3600, timed.gpu_seconds / 3600
    sample = sample_captions(run, name)
    problems += sample.damaged
    return {
        **counts,
        "tokens": counts["tokens"] if sample.has_token_counts else None,
        "timed": timed.images,
        "untimed": counts["done"] - timed.images,
        "hours": hours,
        "gpu_hours": gpu_hours,
        "cost": gpu_hours * price if gpu_hours and price is not None else None,
        "images_per_hour": timed.images / hours if hours else None,
        "texts": sample.lengths.texts,
        "tokens_per_text": sample.lengths.to_dict()["tokens_per_text"],
        "lengths": sample.lengths.histogram(),
        "unit": "tokens" if sample.has_token_counts else "words",
        "flags": dict(sample.flags.most_common()),
        "examples": sample.examples,
        "rejected": dict(sample.rejected.most_common(TOP_REASONS)),
    }


def sample_captions(run: Run, name: str) -> CaptionSample:
    """Return what at most SAMPLED_SHARDS of a captioner's committed shards hold."""
    sample = CaptionSample()
    for row in _caption_rows(run, name, sample.damaged):
        sample.add(row)
    return sample


def _truncate(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _caption_rows(run: Run, name: str, damaged: list[str]) -> Iterator[CaptionRow]:
    """Yield the rows of the sampled shards; add shards that cannot be read to `damaged`."""
    columns = list(CaptionRow.__annotations__)
    for shard in evenly(ledger.captioned_shards(run, name), SAMPLED_SHARDS):
        url = run.caption_shard(name, shard)
        try:
            for batch in artifacts.iter_parquet(url, "Remove it and run `lotlip-data recaption`.", columns):
                yield from batch.to_pylist()
        except UserError as error:
            damaged.append(str(error))


def _failures(run: Run) -> dict[str, Any]:
    """Return the numbers of URLs requested and of images fetched, and the failures by reason and by host."""
    if not storage.exists(run.plan):
        return NO_FAILURES
    summary = read_summary(run)
    return {"asked": summary.requested, "fetched": summary.fetched, **summary.failures.to_dict()}


def _dataset(run: Run) -> dict[str, Any] | None:
    """Return dataset.json without its lists of files, and of its manifest the `clean` section only."""
    if not storage.exists(run.dataset):
        return None
    content = read_dataset_summary(run)
    left_out = ("shards", "validation", "inputs", "replaced", "manifest")
    summary = {name: value for name, value in content.items() if name not in left_out}
    return summary | {"clean": content["manifest"]["clean"]}


def _duplicates(plan: Partition | None, dataset: dict[str, Any] | None) -> dict[str, int | None]:
    """Return the number of rows that repeat a URL, and of images left out for each kind of duplicate.

    None means that the count is not known yet, or that the manifest does not ask for this check.
    """
    clean, dropped = (dataset["clean"], dataset["dropped"]) if dataset else ({}, {})
    checked = {
        DUPLICATE: clean.get("duplicates"),
        NEAR_DUPLICATE: clean.get("near_duplicates") is not None,
        EVALUATION_IMAGE: clean.get("evaluation_sets"),
    }
    images = {reason: dropped.get(reason, 0) if is_checked else None for reason, is_checked in checked.items()}
    return {"url": plan.duplicates if plan else None, **images}


def _evaluations(evaluated: dict[str, list[str]], problems: list[str]) -> dict[str, Any]:
    """Return, by model, the metrics of all its result files. Where two files have the same task, the first counts."""
    results: dict[str, Any] = {}
    for name, urls in evaluated.items():
        for url in urls:
            read = partial(artifacts.read_json, url, "Remove it and evaluate again.", artifacts.JsonObject)
            content: dict[str, Any] = _or_problem(problems, {}, read)
            for group in GROUPS:
                tasks = content.get(group)
                if isinstance(tasks, dict):
                    of_model = results.setdefault(name, {})
                    marked = {_marked(task, figures, content): figures for task, figures in tasks.items()}
                    of_model[group] = marked | of_model.get(group, {})
    return results


def _marked(task: str, figures: Any, content: Mapping[str, Any]) -> str:
    """The name of a task, marked if a part of its set was measured: such figures are in a row of their own."""
    settings = content.get("settings")
    tasks = settings.get("tasks") if isinstance(settings, dict) else None
    description = tasks.get(task) if isinstance(tasks, dict) else None
    is_partial = isinstance(description, dict) and description.get("partial")
    has_damaged = isinstance(figures, dict) and figures.get("damaged")
    return f"{task} (partial)" if is_partial or has_damaged else task
