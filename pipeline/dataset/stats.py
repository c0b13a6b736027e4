"""The figures of the paper's Table 6 for a dataset: images, texts, sub-captions a text, BERT tokens a text.

Tokens are those of bert-base-uncased's WordPiece, without special tokens. Read from the Parquet files, in batches. An
image that several sources list counts for each of them, and once in all.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import dataset_index, storage
from lotlip_data.manifests.dataset_index import DatasetError, Output
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.manifests.text_stats import CountTokens, TextTally, bert_tokens

BATCH = 1000


@dataclass
class SourceTally:
    """Of one source, or of all: its images, their raw texts by it, and their long texts by captioner."""

    images: int = 0
    raw: TextTally = field(default_factory=TextTally)
    captioners: defaultdict[str, TextTally] = field(default_factory=lambda: defaultdict(TextTally))

    def to_dict(self, captioners: Iterable[str]) -> dict[str, Any]:
        every = TextTally()
        for name in captioners:
            every += self.captioners[name]
        raw = {name: value for name, value in self.raw.to_dict().items() if name != "sub_captions_per_text"}
        return {
            "images": self.images,
            **every.to_dict(),
            "lengths": every.histogram(),
            "captioners": {
                name: total.to_dict() | {"flags": dict(total.flags.most_common()), "lengths": total.histogram()}
                for name, total in self.captioners.items()
            },
            "raw": raw | {"lengths": self.raw.histogram()},
        }


def dataset_stats(run: Run, count_tokens: CountTokens | None = None) -> dict[str, Any]:
    """The run's dataset in figures, all splits together.

    `images` and, of all long texts, `texts`, `sub_captions_per_text`, `tokens_per_text` (the paper's row), `lengths`;
    the same of each captioner under `captioners`, with how often it was given each flag; of the samples' first raw
    texts under `raw`, without sub-captions; all that again by source under `sources`; what was left out, with its
    reason, under `dropped` and `dropped_texts`. Raises DatasetError where there is no dataset or a file cannot be read.
    """
    count_tokens = count_tokens or bert_tokens()
    description = dataset_index.read_index(run)
    captioners = list(description["captioners"])
    total, sources = SourceTally(), defaultdict[str, SourceTally](SourceTally)
    columns = ["sources", "raws", *(name + suffix for name in captioners for suffix in ("", SUB_SUFFIX, FLAGS_SUFFIX))]
    for record in dataset_index.read_records(description):
        for output in record.outputs:
            for batch in _batches(run, output, columns):
                _count(batch, captioners, total, sources, count_tokens)
    by_source = {name: sources[name].to_dict(captioners) for name in sorted(sources)}
    left_out = {name: description[name] for name in ("fetched", "dropped", "dropped_texts")}
    return {**total.to_dict(captioners), "sources": by_source, **left_out}


def _count(
    batch: pa.RecordBatch,
    captioners: Sequence[str],
    total: SourceTally,
    sources: defaultdict[str, SourceTally],
    count_tokens: CountTokens,
) -> None:
    """Add the samples of one batch to the sums, to those of all and to those of each one's sources."""
    of_rows = batch["sources"].to_pylist()
    tallies = [[total, *(sources[name] for name in dict.fromkeys(names))] for names in of_rows]
    for few in tallies:
        for one in few:
            one.images += 1
    raws = batch["raws"].to_pylist()
    lengths = iter(count_tokens([text for texts in raws for text in texts]))
    for names, texts in zip(of_rows, raws, strict=True):
        told = False
        for name, text in zip(names, texts, strict=True):
            tokens = next(lengths)
            if text.strip():  # of a sample's raw texts, the first counts in all, and each for its own source
                sources[name].raw.add(tokens)
                if not told:
                    total.raw.add(tokens)
                told = True
    for name in captioners:
        texts = [text or "" for text in batch[name].to_pylist()]
        columns = (batch[name + SUB_SUFFIX].to_pylist(), batch[name + FLAGS_SUFFIX].to_pylist())
        for few, text, tokens, pieces, flags in zip(tallies, texts, count_tokens(texts), *columns, strict=True):
            for one in few:
                one.captioners[name].flags.update(flags.split())
                if text.strip():
                    one.captioners[name].add(tokens, len(pieces))


def _batches(run: Run, output: Output, columns: list[str]) -> Iterator[pa.RecordBatch]:
    url = storage.join(run.shards, output.parquet.name)
    try:
        with storage.open_read(url) as stream:
            yield from pq.ParquetFile(stream, pre_buffer=False).iter_batches(BATCH, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{url}: cannot be read ({error}). `lotlip-data verify {run.url}` says what to do."
        ) from error


def table(figures: dict[str, Any]) -> list[str]:
    """The lines of a table of what `dataset_stats` returns, for people."""
    lines = [f"{'':32}{'images':>12}{'texts':>12}{'sub-captions':>14}{'BERT tokens':>13}"]
    lines += [f"{'':32}{'':>12}{'':>12}{'a text':>14}{'a text':>13}", *_rows("", figures)]
    if len(figures["sources"]) > 1:
        for source, few in figures["sources"].items():
            lines += _rows(f"{source}: ", few)
    lines += ["", *_histogram({"raw texts": figures["raw"], **figures["captioners"]}), ""]
    for name, row in figures["captioners"].items():
        lines.append(f"flags of {name}: {_listed(row['flags'])}")
    lines.append(f"left out of {figures['fetched']:,} images: {_listed(figures['dropped'])}")
    for what, counts in figures["dropped_texts"].items():
        lines.append(f"texts left out ({what}): {_listed(counts)}")
    return lines


def _rows(prefix: str, figures: dict[str, Any]) -> list[str]:
    lines = []
    for name, row in {"raw texts": figures["raw"], **figures["captioners"], "all long texts": figures}.items():
        sub = f"{row['sub_captions_per_text']:.2f}" if "sub_captions_per_text" in row else "–"
        counts = f"{figures['images']:>12,}{row['texts']:>12,}{sub:>14}{row['tokens_per_text']:>13.2f}"
        lines.append(f"{prefix + name:32}{counts}")
    return lines


def _histogram(rows: dict[str, Any]) -> list[str]:
    """Shares of texts by length: one row a range of tokens, one column a kind of text."""
    ranges = sorted(
        {text for row in rows.values() for text in row["lengths"]}, key=lambda text: int(text.split("-")[0])
    )
    widths = {name: max(18, len(name) + 2) for name in rows}
    lines = [f"{'BERT tokens of a text':24}" + "".join(f"{name:>{width}}" for name, width in widths.items())]
    for text in ranges:
        shares = {name: row["lengths"].get(text, 0) / max(1, row["texts"]) for name, row in rows.items()}
        lines.append(f"{text:24}" + "".join(f"{share:>{widths[name]}.1%}" for name, share in shares.items()))
    return lines


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
