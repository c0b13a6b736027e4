"""One page about a run: what was asked, fetched and failed, what the captioners wrote, and what it took so far."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.dataset_index import read_dataset_summary
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import evenly
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.text_stats import TextTally
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation.exclusions import DUPLICATE, EVALUATION_IMAGE, NEAR_DUPLICATE
from lotlip_data.pipeline.downloading.stage import read_summary
from lotlip_data.pipeline.reporting.status import status
from lotlip_data.pipeline.url_lists.partition import Partition, load_partition

NO_FAILURES: dict[str, Any] = {"asked": 0, "fetched": 0, "reasons": {}, "hosts": {}}
LONGEST_EXAMPLE, LONGEST_REASON = 3000, 120
"""Characters shown: of a text of the longest captions there are, all."""
EXAMPLES = 2
"""Texts shown of a captioner with a flag."""
LOOKED_AT = 20
"""Caption shards that flags, their examples and lengths are taken from, evenly chosen among all."""


@dataclass(frozen=True)
class Written:
    """What a sample of a captioner's shards says: its texts and their lengths, counts of flags, examples of each."""

    counted: bool
    """Whether the model's tokens are known, as they are not of captions that were imported."""
    texts: TextTally
    """Tokens of a text where these are counted, else words."""
    flags: Counter[str]
    examples: dict[str, list[dict[str, str]]]
    rejected: Counter[str]
    damaged: list[str]
    """Shards that cannot be read, and what to do."""


def figures(run: Run, price: float | None = None) -> dict[str, Any]:
    """Everything that the page shows, as JSON keeps it. price: of an hour of one GPU, in whatever money.

    `problems` names what is damaged; all else is there. Raises UserError where the folder holds no run, or its plan is
    damaged.
    """
    if not storage.exists(run.manifest) and not storage.exists(run.plan):
        raise UserError(f"{run.url}: there is no run; name the folder that `lotlip-data download` filled")
    found, problems = status(run), list[str]()
    plan = load_partition(run)
    described = _told(problems, None, lambda: _dataset(run))
    captioners = {name: _captioner(run, name, one, price, problems) for name, one in found["captioners"].items()}
    return {
        "run": run.url,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": metadata.version("lotlip-data"),
        "manifest": _text(run.manifest),
        "plan": plan and asdict(plan),
        "status": found,
        "failures": _told(problems, NO_FAILURES, lambda: _failures(run)),
        "captioners": captioners,
        "duplicates": _duplicates(plan, described),
        "dataset": described,
        "trained": _evaluations(found["evaluated"], problems),
        "price": price,
        "problems": problems,
    }


Answer = TypeVar("Answer")


def _told(problems: list[str], otherwise: Answer, ask: Callable[[], Answer]) -> Answer:
    """The answer, or a problem more and what stands for it: what is damaged does not cost the rest of the page."""
    try:
        return ask()
    except UserError as error:
        problems.append(str(error))
        return otherwise


def _text(url: str) -> str | None:
    return storage.read_bytes(url).decode(errors="replace") if storage.exists(url) else None


def _captioner(run: Run, name: str, counts: dict[str, Any], price: float | None, problems: list[str]) -> dict[str, Any]:
    done = ledger.throughput(ledger.captioned(run, name))
    hours, gpu_hours = done.seconds / 3600, done.gpu_seconds / 3600
    written = written_by(run, name)
    problems += written.damaged
    return {
        **counts,
        "tokens": counts["tokens"] if written.counted else None,
        "timed": done.images,
        "untimed": counts["done"] - done.images,
        "hours": hours,
        "gpu_hours": gpu_hours,
        "cost": gpu_hours * price if gpu_hours and price is not None else None,
        "images_per_hour": done.images / hours if hours else None,
        "texts": written.texts.texts,
        "tokens_per_text": written.texts.to_dict()["tokens_per_text"],
        "lengths": written.texts.histogram(),
        "unit": "tokens" if written.counted else "words",
        "flags": dict(written.flags.most_common()),
        "examples": written.examples,
        "rejected": dict(written.rejected.most_common(10)),
    }


def written_by(run: Run, name: str) -> Written:
    """What a captioner's committed shards hold, from at most LOOKED_AT of them."""
    flags: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    tokens, words, damaged = TextTally(), TextTally(), list[str]()
    for row in _rows(run, name, damaged):
        if row["text"] is None:
            rejected[_cut(str(row["error"]), LONGEST_REASON)] += 1
            continue
        words.add(len(row["text"].split()))
        if row["tokens"] is not None:
            tokens.add(row["tokens"])
        flags.update(row["flags"])
        for flag in row["flags"]:
            if len(few := examples.setdefault(flag, [])) < EXAMPLES:
                few.append({"uid": row["uid"], "text": _cut(row["text"], LONGEST_EXAMPLE)})
    counted = tokens.texts == words.texts
    return Written(counted, tokens if counted else words, flags, examples, rejected, damaged)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _rows(run: Run, name: str, damaged: list[str]) -> Iterator[dict[str, Any]]:
    columns = ["uid", "text", "tokens", "flags", "error"]
    for shard in evenly(ledger.captioned_shards(run, name), LOOKED_AT):
        try:
            with storage.open_read(run.caption_shard(name, shard)) as stream:
                for batch in pq.ParquetFile(stream, pre_buffer=False).iter_batches(1000, columns=columns):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            damaged.append(f"{run.caption_shard(name, shard)}: cannot be read ({error}). Remove it and recaption.")


def _failures(run: Run) -> dict[str, Any]:
    """How many images were asked for and fetched, and the failures by reason and by host."""
    if not storage.exists(run.plan):
        return NO_FAILURES
    summary = read_summary(run)
    return {"asked": summary.asked, "fetched": summary.fetched, **summary.failures.to_dict()}


def _dataset(run: Run) -> dict[str, Any] | None:
    """What dataset.json says, without its lists of files; of its manifest, what was asked of `clean`."""
    if not storage.exists(run.dataset):
        return None
    content = read_dataset_summary(run)
    unseen = ("shards", "validation", "inputs", "replaced", "manifest")
    kept = {name: value for name, value in content.items() if name not in unseen}
    return kept | {"clean": content["manifest"]["clean"]}


def _duplicates(plan: Partition | None, described: dict[str, Any] | None) -> dict[str, int | None]:
    """Rows of a URL that was there before, and images left out for the sake of others.

    None: not known yet, or not looked for.
    """
    clean, dropped = (described["clean"], described["dropped"]) if described else ({}, {})
    looked_for = {
        DUPLICATE: clean.get("duplicates"),
        NEAR_DUPLICATE: clean.get("near_duplicates") is not None,
        EVALUATION_IMAGE: clean.get("evaluation_sets"),
    }
    images = {reason: dropped.get(reason, 0) if asked else None for reason, asked in looked_for.items()}
    return {"url": plan.duplicates if plan else None, **images}


def _evaluations(evaluated: dict[str, list[str]], problems: list[str]) -> dict[str, Any]:
    """By model, the figures of all its results; of a task that two of them have, those of the first."""
    found: dict[str, Any] = {}
    for name, urls in evaluated.items():
        for url in urls:
            one: dict[str, Any] = _told(
                problems, {}, partial(artifacts.read_json, url, "Remove it and evaluate again.")
            )
            for kind in ("retrieval", "classification"):
                of_kind = one.get(kind)
                if isinstance(of_kind, dict):
                    kept = found.setdefault(name, {}).setdefault(kind, {})
                    found[name][kind] = of_kind | kept
    return found
