"""One page about a run: what was asked, fetched and failed, what the captioners wrote, and what it took so far."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger
from lotlip_data.pipeline.download import read_summary
from lotlip_data.pipeline.plan_lists import evenly
from lotlip_data.pipeline.status import status

EXAMPLES = 2
"""Texts shown of a captioner with a flag."""
LOOKED_AT = 20
"""Caption shards that flags, their examples and lengths are taken from, evenly chosen among all."""


@dataclass(frozen=True)
class Written:
    """What a sample of a captioner's shards says: counts of flags, examples of each, words of each text."""

    texts: int
    flags: Counter[str]
    examples: dict[str, list[dict[str, str]]]
    lengths: list[int]
    """Tokens of a text, as the model counted them; words, where it did not."""
    rejected: Counter[str]


def figures(run: Run, price: float | None = None) -> dict[str, Any]:
    """Everything that the page shows, as JSON keeps it. price: of an hour of one actor, in whatever money.

    Raises UserError where the folder holds no run.
    """
    if not storage.exists(run.manifest) and not storage.exists(run.plan):
        raise UserError(f"{run.url}: there is no run; name the folder that `lotlip-data download` filled")
    found = status(run)
    captioners = {name: _captioner(run, name, one, price) for name, one in found["captioners"].items()}
    return {
        "run": run.url,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": metadata.version("lotlip-data"),
        "manifest": _text(run.manifest),
        "plan": json.loads(_text(run.plan) or "null"),
        "status": found,
        "failures": _failures(run),
        "captioners": captioners,
        "dataset": _dataset(run),
        "trained": _evaluations(run, found["evaluated"]),
        "price": price,
    }


def _text(url: str) -> str | None:
    return storage.read_bytes(url).decode() if storage.exists(url) else None


def _captioner(run: Run, name: str, counts: dict[str, Any], price: float | None) -> dict[str, Any]:
    seconds = sum(tally.seconds for tally in ledger.recorded(run.caption_ledger(name)).values())
    hours = seconds / 3600
    written = written_by(run, name)
    return {
        **counts,
        "hours": hours,
        "cost": None if price is None else hours * price,
        "images_per_hour": counts["done"] / hours if hours else None,
        "texts": written.texts,
        "flags": dict(written.flags.most_common()),
        "examples": written.examples,
        "lengths": written.lengths,
        "rejected": dict(written.rejected.most_common(10)),
    }


def written_by(run: Run, name: str) -> Written:
    """What a captioner's committed shards hold, from at most LOOKED_AT of them."""
    flags: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    lengths: list[int] = []
    for row in _rows(run, name):
        if row["text"] is None:
            rejected[str(row["error"])[:120]] += 1
            continue
        lengths.append(row["tokens"] if row["tokens"] is not None else len(row["text"].split()))
        flags.update(row["flags"])
        for flag in row["flags"]:
            if len(few := examples.setdefault(flag, [])) < EXAMPLES:
                few.append({"uid": row["uid"], "text": row["text"][:1000]})
    return Written(len(lengths), flags, examples, lengths, rejected)


def _rows(run: Run, name: str) -> Iterator[dict[str, Any]]:
    columns = ["uid", "text", "tokens", "flags", "error"]
    for shard in evenly(ledger.captioned_shards(run, name), LOOKED_AT):
        try:
            with storage.open_read(run.caption_shard(name, shard)) as stream:
                for batch in pq.ParquetFile(stream, pre_buffer=False).iter_batches(1000, columns=columns):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{run.caption_shard(name, shard)}: cannot be read ({error}). Remove it and recaption."
            ) from error


def _failures(run: Run) -> dict[str, Any]:
    """How many images were asked for and fetched, and the failures by reason and by host."""
    if not storage.exists(run.plan):
        return {"asked": 0, "fetched": 0, "reasons": {}, "hosts": {}}
    summary = read_summary(run)
    return {"asked": summary.asked, "fetched": summary.fetched, **summary.failures.figures()}


def _dataset(run: Run) -> dict[str, Any] | None:
    """What dataset.json says, without its lists of files."""
    content = json.loads(_text(run.dataset) or "null")
    if content is None:
        return None
    kept: dict[str, Any] = {
        name: value
        for name, value in content.items()
        if name not in ("shards", "validation", "inputs", "replaced", "manifest")
    }
    return kept


def _evaluations(run: Run, names: list[str]) -> dict[str, Any]:
    return {name: json.loads(storage.read_bytes(run.evaluation(name))) for name in names}
