"""The figures of the paper's Table 6 for a dataset: images, texts, sub-captions a text, BERT tokens a text.

Tokens are those of bert-base-uncased's WordPiece, without special tokens. Read from the Parquet files, in batches.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.layout import Run
from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.manifests.subcaptions import SplitMode
from lotlip_data.pipeline import dataset
from lotlip_data.pipeline.dataset import DatasetError, ShardRecord

BATCH = 1000

CountTokens = Callable[[Sequence[str]], list[int]]
"""From texts to the number of tokens of each."""


def bert_tokens(vocab: str | None = None) -> CountTokens:
    """Counts bert-base-uncased tokens, with the vocabulary that comes with the project or the `vocab.txt` given."""
    from tokenizers import BertWordPieceTokenizer

    path = vocab or str(resources.files("lotlip_data.manifests") / "bert-base-uncased-vocab.txt")
    tokenizer = BertWordPieceTokenizer(path, lowercase=True)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoded.ids) for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count


@dataclass
class TextTally:
    """Sums over texts; a blank text is none."""

    texts: int = 0
    sub_captions: int = 0
    tokens: int = 0
    flags: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: "TextTally") -> "TextTally":
        self.texts += other.texts
        self.sub_captions += other.sub_captions
        self.tokens += other.tokens
        self.flags.update(other.flags)
        return self

    def figures(self) -> dict[str, Any]:
        """texts, sub_captions_per_text and tokens_per_text; the means are 0 where there is no text."""
        return {
            "texts": self.texts,
            "sub_captions_per_text": self.sub_captions / max(1, self.texts),
            "tokens_per_text": self.tokens / max(1, self.texts),
        }


def tally(texts: Iterable[str], mode: SplitMode, count_tokens: CountTokens) -> TextTally:
    """The sums over plain texts, split as `mode` says."""
    total = TextTally()
    given = (text for text in texts if text.strip())
    while batch := list(islice(given, BATCH)):
        total.texts += len(batch)
        total.sub_captions += sum(len(subcaptions.split(text, mode)) for text in batch)
        total.tokens += sum(count_tokens(batch))
    return total


def dataset_stats(run: Run, count_tokens: CountTokens | None = None) -> dict[str, Any]:
    """The run's dataset in figures.

    `images` and, of all long texts, `texts`, `sub_captions_per_text` and `tokens_per_text` (the paper's row); the same
    of each captioner under `captioners`, with how often it was given each flag; of the raw texts under `raw`, without
    sub-captions. Raises DatasetError where there is no dataset or a file of it cannot be read.
    """
    count_tokens = count_tokens or bert_tokens()
    description = dataset.read(run)
    captioners = {name: TextTally() for name in description["captioners"]}
    raw, images = TextTally(), 0
    columns = ["raw", *(name + suffix for name in captioners for suffix in ("", SUB_SUFFIX, FLAGS_SUFFIX))]
    for record in dataset.records(description):
        for batch in _batches(run, record, columns):
            images += batch.num_rows
            raw += _tally_column(batch["raw"].to_pylist(), count_tokens)
            for name, total in captioners.items():
                total += _tally_column(batch[name].to_pylist(), count_tokens)
                total.sub_captions += sum(map(len, batch[name + SUB_SUFFIX].to_pylist()))
                total.flags.update(" ".join(batch[name + FLAGS_SUFFIX].to_pylist()).split())
    every = TextTally()
    for total in captioners.values():
        every += total
    return {
        "images": images,
        **every.figures(),
        "captioners": {
            name: total.figures() | {"flags": dict(total.flags.most_common())} for name, total in captioners.items()
        },
        "raw": {name: value for name, value in raw.figures().items() if name != "sub_captions_per_text"},
    }


def _batches(run: Run, record: ShardRecord, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if record.parquet is None:
        return
    url = storage.join(run.shards, record.parquet.name)
    try:
        with storage.open_read(url) as stream:
            yield from pq.ParquetFile(stream).iter_batches(BATCH, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{url}: cannot be read ({error}). `lotlip-data verify {run.url}` says what to do."
        ) from error


def _tally_column(values: Iterable[str | None], count_tokens: CountTokens) -> TextTally:
    texts = [text for text in values if text and text.strip()]
    return TextTally(texts=len(texts), tokens=sum(count_tokens(texts)))


def table(figures: dict[str, Any]) -> list[str]:
    """The lines of a table of what `dataset_stats` returns, for people."""
    lines = [f"{'':24}{'images':>12}{'texts':>12}{'sub-captions':>14}{'BERT tokens':>13}"]
    lines += [f"{'':24}{'':>12}{'':>12}{'a text':>14}{'a text':>13}"]
    rows = {"raw texts": figures["raw"], **figures["captioners"], "all long texts": figures}
    for name, row in rows.items():
        sub = f"{row['sub_captions_per_text']:.2f}" if "sub_captions_per_text" in row else "–"
        lines.append(f"{name:24}{figures['images']:>12,}{row['texts']:>12,}{sub:>14}{row['tokens_per_text']:>13.2f}")
    for name, row in figures["captioners"].items():
        flags = ", ".join(f"{flag} {count:,}" for flag, count in row["flags"].items())
        lines.append(f"flags of {name}: {flags or 'none'}")
    return lines
