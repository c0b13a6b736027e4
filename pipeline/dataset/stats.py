"""Counts what a dataset contains: the columns of the paper's Table 6.

Images, texts, sub-captions per text and BERT tokens per text. Tokens are those of the WordPiece tokenizer of
bert-base-uncased, without special tokens. The Parquet files are read in batches. An image that several sources list
counts for each of them, and once in the total. The scores of a dataset that has some are counted in the same pass.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import DatasetError, ShardFile
from lotlip_data.manifests.formats.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.manifests.progress import track
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.text_stats import CountTokens, TextTally, bert_tokens
from lotlip_data.pipeline.dataset import score_stats
from lotlip_data.pipeline.dataset.score_stats import ScoreTallies

BATCH_ROWS = 1000


@dataclass
class SourceTally:
    """The counts of one source, or of all: images, their raw texts from this source, their long texts by captioner."""

    images: int = 0
    raw: TextTally = field(default_factory=TextTally)
    captioners: defaultdict[str, TextTally] = field(default_factory=lambda: defaultdict(TextTally))

    def to_dict(self, captioners: Iterable[str]) -> dict[str, Any]:
        total = TextTally()
        for name in captioners:
            total += self.captioners[name]
        raw = {name: value for name, value in self.raw.to_dict().items() if name != "sub_captions_per_text"}
        return {
            "images": self.images,
            **total.to_dict(),
            "lengths": total.histogram(),
            "captioners": {
                name: tally.to_dict() | {"flags": dict(tally.flags.most_common()), "lengths": tally.histogram()}
                for name, tally in self.captioners.items()
            },
            "raw": raw | {"lengths": self.raw.histogram()},
        }


def dataset_stats(run: Run, count_tokens: CountTokens | None = None) -> dict[str, Any]:
    """The statistics of the run's dataset, all splits together.

    Args:
        run: The run.
        count_tokens: Counts the tokens of texts. Default: the tokens of bert-base-uncased.

    Returns:
        `images`, and for all long texts `texts`, `sub_captions_per_text`, `tokens_per_text` (the paper's row) and
        `lengths`. The same per captioner under `captioners`, with the number of each flag. The same for the first raw
        text of each sample under `raw`, without sub-captions. All of that per source under `sources`. What was left
        out, by reason, under `dropped` and `dropped_texts`. Of a dataset with scores also `scores`, by scorer, and
        `score_limits`, as `ScoreTallies.to_dict` has them.

    Raises:
        DatasetError: There is no dataset, or a file cannot be read.
    """
    count_tokens = count_tokens or bert_tokens()
    content = dataset_index.read_index(run)
    captioners = list(content["captioners"])
    total, sources, scores = SourceTally(), defaultdict[str, SourceTally](SourceTally), ScoreTallies(content)
    for file in track(dataset_index.shard_files(run, content), "stats", "file"):
        for batch in _batches(run, file, captioners, scores.columns):
            tallies = _count_images(batch, total, sources)
            _count_raw_texts(batch, total, sources, count_tokens)
            _count_long_texts(batch, captioners, tallies, count_tokens)
            scores.add(batch)
    by_source = {name: sources[name].to_dict(captioners) for name in sorted(sources)}
    left_out = {name: content[name] for name in ("fetched", "dropped", "dropped_texts")}
    return {**total.to_dict(captioners), "sources": by_source, **left_out, **scores.to_dict()}


def _batches(
    run: Run, file: ShardFile, captioners: Sequence[str], score_columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    columns = ["sources", "raws", *(name + suffix for name in captioners for suffix in ("", SUB_SUFFIX, FLAGS_SUFFIX))]
    columns += score_columns
    remedy = f"`lotlip-data verify {run.url}` says what to do."
    return artifacts.iter_parquet(file.parquet_url, remedy, columns, BATCH_ROWS, DatasetError, file.parquet.digest)


def _count_images(
    batch: pa.RecordBatch, total: SourceTally, sources: defaultdict[str, SourceTally]
) -> list[list[SourceTally]]:
    """Count the samples of a batch. Returns the tallies that each sample counts in: the total and its sources."""
    tallies = [[total, *(sources[name] for name in dict.fromkeys(names))] for names in batch["sources"].to_pylist()]
    for tallies_of_sample in tallies:
        for tally in tallies_of_sample:
            tally.images += 1
    return tallies


def _count_raw_texts(
    batch: pa.RecordBatch, total: SourceTally, sources: defaultdict[str, SourceTally], count_tokens: CountTokens
) -> None:
    """Count each raw text that is not blank for its source, and the first one of each sample in the total."""
    raws = batch["raws"].to_pylist()
    lengths = iter(count_tokens([text for texts in raws for text in texts]))
    for names, texts in zip(batch["sources"].to_pylist(), raws, strict=True):
        is_first = True
        for name, text in zip(names, texts, strict=True):
            tokens = next(lengths)
            if text.strip():
                sources[name].raw.add(tokens)
                if is_first:
                    total.raw.add(tokens)
                is_first = False


def _count_long_texts(
    batch: pa.RecordBatch,
    captioners: Sequence[str],
    tallies: Sequence[Sequence[SourceTally]],
    count_tokens: CountTokens,
) -> None:
    """Count the long texts that are not blank, and the flags of all, in the tallies of their samples."""
    for name in captioners:
        texts = [text or "" for text in batch[name].to_pylist()]
        columns = (batch[name + SUB_SUFFIX].to_pylist(), batch[name + FLAGS_SUFFIX].to_pylist())
        rows = zip(tallies, texts, count_tokens(texts), *columns, strict=True)
        for tallies_of_sample, text, tokens, pieces, flags in rows:
            for tally in tallies_of_sample:
                tally.captioners[name].flags.update(flags.split())
                if text.strip():
                    tally.captioners[name].add(tokens, len(pieces))


def table(stats: dict[str, Any]) -> list[str]:
    """The result of `dataset_stats` as the lines of a table."""
    lines = [f"{'':32}{'images':>12}{'texts':>12}{'sub-captions':>14}{'BERT tokens':>13}"]
    lines += [f"{'':32}{'':>12}{'':>12}{'per text':>14}{'per text':>13}", *_rows("", stats)]
    if len(stats["sources"]) > 1:
        for source, source_stats in stats["sources"].items():
            lines += _rows(f"{source}: ", source_stats)
    lines += ["", *_histogram({"raw texts": stats["raw"], **stats["captioners"]}), ""]
    for name, row in stats["captioners"].items():
        lines.append(f"flags of {name}: {_format_counts(row['flags'])}")
    lines.append(f"left out of {stats['fetched']:,} images: {_format_counts(stats['dropped'])}")
    for what, counts in stats["dropped_texts"].items():
        lines.append(f"texts left out ({what}): {_format_counts(counts)}")
    return lines + score_stats.table(stats)


def _rows(prefix: str, stats: dict[str, Any]) -> list[str]:
    lines = []
    for name, row in {"raw texts": stats["raw"], **stats["captioners"], "all long texts": stats}.items():
        sub_captions = f"{row['sub_captions_per_text']:.2f}" if "sub_captions_per_text" in row else "–"
        counts = f"{stats['images']:>12,}{row['texts']:>12,}{sub_captions:>14}{row['tokens_per_text']:>13.2f}"
        lines.append(f"{prefix + name:32}{counts}")
    return lines


def _histogram(rows: dict[str, Any]) -> list[str]:
    """Shares of texts by length: one row per range of tokens, one column per kind of text."""
    ranges = sorted(
        {tokens for row in rows.values() for tokens in row["lengths"]}, key=lambda tokens: int(tokens.split("-")[0])
    )
    widths = {name: max(18, len(name) + 2) for name in rows}
    lines = [f"{'BERT tokens of a text':24}" + "".join(f"{name:>{width}}" for name, width in widths.items())]
    for tokens in ranges:
        shares = {name: row["lengths"].get(tokens, 0) / max(1, row["texts"]) for name, row in rows.items()}
        lines.append(f"{tokens:24}" + "".join(f"{share:>{widths[name]}.1%}" for name, share in shares.items()))
    return lines


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
