"""Runs a dataset-wide scorer as the stage does, in one process."""

import dataclasses
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence

from lotlip_data.pipeline.scoring.base import RAW, DatasetScorer, ImageScores, ImageText, ScoredImage
from tests.support.paths import ROOT

Shards = Mapping[int, Sequence[ScoredImage]]


def image_with_texts(uid: str, raw: Sequence[str] = (), **long_texts: Sequence[str]) -> ScoredImage:
    """An image with raw texts, and with the sub-captions of each captioner; their sentences make its long text."""
    texts = [ImageText(RAW, text) for text in raw]
    texts += [ImageText(name, " ".join(pieces), tuple(pieces)) for name, pieces in long_texts.items()]
    return ScoredImage(uid=uid, sha256="", content=b"", texts=tuple(texts))


def score_shards(scorer: DatasetScorer, shards: Shards, folder: pathlib.Path) -> dict[int, list[ImageScores]]:
    """The scores of the images of each shard. Shards are surveyed in reverse, by copies of the scorer."""
    folder.mkdir(parents=True, exist_ok=True)
    surveys = {shard: pickle.loads(pickle.dumps(scorer)).survey(iter(shards[shard])) for shard in sorted(shards)[::-1]}
    rows = {shard: len(survey.columns[0]) for shard, survey in surveys.items()}
    numbers = dict(scorer.combine(iter(surveys.items()), sum(rows.values()), folder))
    assert {shard: len(of_shard) for shard, of_shard in numbers.items()} == {k: n for k, n in rows.items() if n}
    return {
        shard: list(
            scorer.assign((dataclasses.replace(image, content=b"") for image in images), numbers.get(shard, ()))
        )
        for shard, images in shards.items()
    }


def peak_mib(program: str, folder: pathlib.Path, shards: int) -> int:
    """Peak memory of a Python program that gets a folder and a number of shards, and prints it in MiB."""
    folder.mkdir()
    command = [sys.executable, "-c", program, str(folder), str(shards)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
