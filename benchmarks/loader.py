"""Samples per second of the training's loader, beside the plain webdataset pipeline, on the same shards.

    python benchmarks/loader.py

Both turn a tar's JPEGs into pixels of a random crop and texts into token ids, in batches: one raw text and three long
ones of three sub-captions a sample. Ours is `training/`'s own: seeded and exact on resuming, so that a batch is a pure
function of its number. webdataset's is what its documentation shows: a shuffle buffer, decoding, mapping, batching,
in worker processes of torch's DataLoader. Both may use as many cores: `--workers` processes there, as many decoding
threads here. They take turns, epoch after epoch; the ratio is the median over the rounds. The last line is one JSON
object.
"""

import argparse
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from lotlip_data.manifests import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.training.data import dataset as data
from lotlip_data.training.data.image_transforms import ImageTransform, random_crop
from lotlip_data.training.data.loader import Batch, prefetch_batches
from lotlip_data.training.data.pixel_reader import PixelReader
from lotlip_data.training.data.tokenizer import TextTokenizer, join_sub_captions, load_tokenizer

CAPTIONERS = ("instructblip", "llava", "sharegpt4v")
WORDS = tuple(f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst")
CROP = (0.9, 1.0)


def write_run(folder: Path, shards: int, samples: int) -> str:
    """Shards as the shard stage writes them: JPEGs of 512 pixels on the shorter side, and texts."""
    rng = np.random.default_rng(0)
    run = Run.at(str(folder))
    Path(run.shards).mkdir(parents=True)
    # Noise of few frequencies, as heavy for a decoder as a photograph of that size and quality.
    pictures = []
    for _ in range(16):
        small = Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS, words)) + "."

    records = []
    for shard in range(shards):
        rows, tar_path = [], Path(run.shards, f"train-{shard:05d}.tar")
        with tarfile.open(tar_path, "w") as tar:
            for index in range(samples):
                key = f"{shard:05d}{index:04d}"
                row: dict[str, Any] = {"key": key, "uid": f"{shard:016x}{index:016x}", "url": "u", "source": "s"}
                row |= {"raw": sentence(15), "sha256": "0" * 64, "width": 640, "height": 512}
                for name in CAPTIONERS:
                    pieces = [sentence(18) for _ in range(6)]
                    row |= {name: " ".join(pieces), f"{name}_sub": pieces, f"{name}_flags": ""}
                members = (
                    ("jpg", pictures[index % 16]),
                    ("txt", row["raw"].encode()),
                    ("json", json.dumps(row).encode()),
                )
                for ending, content in members:
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                rows.append(row)
        parquet = Path(run.shards, f"train-{shard:05d}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=schema.dataset(CAPTIONERS)), parquet)
        records.append(
            {"tar": {"name": tar_path.name, "sha256": "0"}, "parquet": {"name": parquet.name}, "samples": samples}
        )
    content = {
        "schema_version": schema.SCHEMA_VERSION,
        "captioners": dict.fromkeys(CAPTIONERS, "x"),
        "sub_captions": "punkt",
        "samples": shards * samples,
        "shards": records,
    }
    Path(run.dataset).write_text(json.dumps(content))
    return run.url


def ours(run: str, tokenizer: TextTokenizer, batch: int, workers: int, first: int, steps: int) -> Iterator[Batch]:
    dataset = data.open_dataset(run)
    picker = data.TextPicker(CAPTIONERS, 3, 3, dataset.sub_captions)
    batches = data.Batches(dataset, picker, batch, seed=0)
    pixels = PixelReader(dataset, ImageTransform(224), seed=0, crop=CROP, open_shards=3, threads=workers)

    def make(step: int) -> Batch:
        places = batches.places(step)
        texts = batches.texts(places)
        every = [text.raw for text in texts] + [one for text in texts for one in text.long]
        return Batch(pixels.rows(places), tokenizer.encode(every).ids)

    return prefetch_batches(make, first, first + steps)


class Sample:
    """webdataset's mapping of one sample: a crop, and the texts of its json."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._transform = ImageTransform(224)
        self._tokenizer = tokenizer

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, list[list[int]]]:
        rng = np.random.default_rng()
        crop = random_crop(sample["jpg"], self._transform, CROP, rng)
        row, texts = sample["json"], [sample["json"]["raw"]]
        for name in random.sample(CAPTIONERS, 3):
            pieces = row[f"{name}_sub"]
            start = random.randrange(len(pieces) - 2)
            texts.append(join_sub_captions(pieces[start : start + 3], "punkt"))
        return self._transform.normalise(crop), self._tokenizer.encode(texts).ids


def plain(run: str, tokenizer: TextTokenizer, batch: int, workers: int) -> Iterator[Any]:
    import webdataset as wds

    shards = [shard.tar for shard in data.open_dataset(run).shards]

    def collate(samples: list[tuple[torch.Tensor, list[list[int]]]]) -> Batch:
        ids = [sample[1] for sample in samples]
        every = [one[0] for one in ids] + [text for one in ids for text in one[1:]]
        return Batch(torch.stack([sample[0] for sample in samples]), every)

    dataset = (
        wds.WebDataset(shards, shardshuffle=True)
        .shuffle(1000)
        .decode("pilrgb")
        .map(Sample(tokenizer))
        .batched(batch, collation_fn=collate, partial=False)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def rate(batches: Iterator[Any], batch: int, skip: int) -> float:
    """Samples per second after the first `skip` batches: starting is not what a training waits for."""
    for _ in range(skip):
        next(batches)
    began, count = time.perf_counter(), sum(1 for _ in batches)
    return count * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000, help="a shard")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = "bert"
    with tempfile.TemporaryDirectory() as scratch:
        run = write_run(Path(scratch, "run"), options.shards, options.samples)
        tokenizer = make_tokenizer(Path(scratch), vocabulary)
        steps = options.shards * options.samples // options.batch
        skip, found = 2 * options.workers, {"ours": [], "webdataset": []}  # type: dict[str, list[float]]
        for turn in range(options.rounds + 1):  # the first warms up
            sides = {
                "ours": lambda turn=turn: ours(run, tokenizer, options.batch, options.workers, turn * steps, steps),
                "webdataset": lambda: plain(run, tokenizer, options.batch, options.workers),
            }
            for side in sorted(sides, reverse=bool(turn % 2)):
                value = rate(sides[side](), options.batch, skip)
                if turn:
                    found[side].append(value)
    for side, values in found.items():
        print(f"{side}: {statistics.median(values):.0f} samples/s ({', '.join(f'{value:.0f}' for value in values)})")
    ratio = statistics.median(a / b for a, b in zip(found["ours"], found["webdataset"], strict=True))
    print(json.dumps({"ours_vs_webdataset": round(ratio, 3)}))


def make_tokenizer(folder: Path, name: str) -> TextTokenizer:
    """BERT's, with the words of these texts."""
    from transformers import BertTokenizerFast

    letters = [chr(code) for code in range(97, 123)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
    return TextTokenizer(
        load_tokenizer(str(folder / name)), vocab_size=len(vocabulary), context_length=128, corner_tokens=2
    )


if __name__ == "__main__":
    main()
