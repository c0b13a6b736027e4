"""The samples of one input shard into the files of the dataset: by split, and no file larger than asked for."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from lotlip_data.manifests.layout import shard_name
from lotlip_data.pipeline.dataset import SPLITS, Output, Recipe
from lotlip_data.pipeline.rules import Row, Rules, split_of
from lotlip_data.pipeline.shard_files import SampleWriter, commit_files, members


def write(
    folder: str,
    number: int,
    recipe: Recipe,
    rows: list[Row],
    image: Callable[[str], bytes],
    columns: pa.Schema,
    scratch: Path,
) -> list[Output]:
    """Write and commit the tars and Parquets of a shard into `folder`; `image` gives the stored bytes by key."""
    outputs = []
    for split in SPLITS:
        few = [row for row in rows if split_of(row["uid"], recipe.rules.validation) == split]
        for index, piece in enumerate(_pieces(few, image, columns, recipe.rules, scratch)):
            stem = f"{split}-{shard_name(number)}" + (f"-{index:02d}" if recipe.rules.limits_files else "")
            outputs.append(_commit(folder, stem, split, recipe, piece))
    return outputs


class _Piece:
    """One tar and its twin while they are written, and their counts."""

    def __init__(self, scratch: Path, columns: pa.Schema) -> None:
        self.files = scratch / "samples.tar", scratch / "samples.parquet"
        self.writer = SampleWriter(*self.files, columns)
        self.filled: Counter[str] = Counter()
        """Samples by column that holds something."""


def _pieces(
    rows: Iterable[Row], image: Callable[[str], bytes], columns: pa.Schema, rules: Rules, scratch: Path
) -> Iterable[_Piece]:
    """The samples in files within the limits, one pair of files at a time: each is gone when the next is asked for."""
    with ExitStack() as open_files:
        piece = None
        for row in rows:
            sample = members(row, image(row["key"]), columns.names)
            if piece is not None and (
                piece.writer.samples == rules.max_samples
                or (rules.max_bytes is not None and piece.writer.bytes_with(sample) > rules.max_bytes)
            ):
                open_files.pop_all().close()
                yield piece
                piece = None
            if piece is None:
                piece = _Piece(scratch, columns)
                open_files.enter_context(piece.writer)
            piece.writer.write(row, sample)
            piece.filled.update(name for name, value in row.items() if value is not None)
        open_files.close()
        if piece is not None:
            yield piece


def _commit(folder: str, stem: str, split: str, recipe: Recipe, piece: _Piece) -> Output:
    """Plain names as long as they are free, then names with the recipe, so that a rewritten dataset is numbered too."""
    tar, parquet = commit_files(folder, (stem, f"{stem}-{recipe.id[:6]}"), piece.files)
    long_texts = {name: piece.filled[name] for name in recipe.captioners}
    return Output(split, piece.writer.samples, long_texts, tar, parquet)
