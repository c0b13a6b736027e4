"""Samples per second of the training's loader, compared with a plain webdataset pipeline, on the same shards.

    python benchmarks/loader.py

Both turn the JPEGs of a tar into pixels of a random crop, and texts into token ids, in batches. A sample has one raw
text and three long texts of three sub-captions. `ours` is the loader of `training/`: it is seeded and exact on resume,
because each batch is a pure function of its number. `webdataset` is the pipeline of its documentation: a shuffle
buffer, decoding, mapping and batching in worker processes of torch's DataLoader. Both use the same number of cores:
`--workers` worker processes, or decoding threads. They take turns, epoch by epoch, and the ratio is the median over the
rounds. The last line of standard output is one JSON object.
"""

import argparse
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.dataset.writer import SampleWriter, members, record_of
from lotlip_data.training.data import dataset as data
from lotlip_data.training.data.image_transforms import ImageTransform, random_crop
from lotlip_data.training.data.loader import prefetch_batches
from lotlip_data.training.data.pixel_reader import PixelReader
from lotlip_data.training.data.text_picker import TextPicker
from lotlip_data.training.data.tokenizer import BertTextTokenizer, TextTokenizer, load_tokenizer

Batch = tuple[torch.Tensor, list[list[int]]]
"""Pixels of the samples and token ids of all their texts."""
CAPTIONERS = ("instructblip", "llava", "sharegpt4v")
WORDS = tuple(f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst")
CROP = (0.9, 1.0)


def write_run(folder: Path, shards: int, samples: int) -> str:
    """Write a run with the writer of the shard stage, whose JPEGs are 512 pixels wide or more. Returns its URL."""
    rng = np.random.default_rng(0)
    run = Run.at(str(folder))
    Path(run.shards).mkdir(parents=True)
    # Low-frequency noise, which costs a decoder as much as a photograph of this size and quality.
    pictures = []
    for _ in range(16):
        small = Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS, words)) + "."

    records, columns = [], schema.dataset(CAPTIONERS)
    for shard in range(shards):
        tar, parquet = (Path(run.shards, f"train-{shard:05d}.{ending}") for ending in ("tar", "parquet"))
        with SampleWriter(tar, parquet, columns) as writer:
            for index in range(samples):
                key = f"{shard:05d}{index:04d}"
                row: dict[str, Any] = {"key": key, "uid": f"{shard:016x}{index:016x}", "url": "u", "source": "s"}
                row |= {"raw": sentence(15), "sha256": "0" * 64, "sources": ["s"]}
                row |= {
                    "width": 640,
                    "height": 512,
                    "original_width": 640,
                    "original_height": 512,
                    "raws": [row["raw"]],
                }
                for name in CAPTIONERS:
                    pieces = [sentence(18) for _ in range(6)]
                    row |= {name: " ".join(pieces), f"{name}_sub": pieces, f"{name}_flags": ""}
                writer.write(row, members(row, pictures[index % 16], columns.names))
        files = {path.suffix[1:]: vars(record_of(path, path.name)) for path in (tar, parquet)}
        records.append({**files, "samples": samples})
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
    """Batches `first` to `first + steps` of the training's loader."""
    dataset = data.open_dataset(run)
    picker = TextPicker(CAPTIONERS, 3, 3, dataset.sub_captions)
    batches = data.Batches(dataset, picker, batch, seed=0)
    pixels = PixelReader(dataset, ImageTransform(224), seed=0, crop=CROP, open_shards=3, threads=workers)

    def make(step: int) -> Batch:
        samples = batches.samples(step)
        texts = batches.texts(samples)
        all_texts = [text.short for text in texts] + [long for text in texts for long in text.long]
        return pixels.load(samples), tokenizer.encode(all_texts).ids

    return prefetch_batches(make, first, first + steps)


class SampleMapper:
    """The mapping of the webdataset pipeline: a sample becomes a crop and the token ids of its texts."""

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
            texts.append(subcaptions.join(pieces[start : start + 3], "punkt"))
        return self._transform.normalize(crop), self._tokenizer.encode(texts).ids


def webdataset_batches(run: str, tokenizer: TextTokenizer, batch: int, workers: int) -> Iterator[Any]:
    """One epoch of the webdataset pipeline."""
    import webdataset as wds

    shards = [shard.tar_url for shard in data.open_dataset(run).shards]

    def collate(samples: list[tuple[torch.Tensor, list[list[int]]]]) -> Batch:
        raw = [ids[0] for _, ids in samples]
        long = [text for _, ids in samples for text in ids[1:]]
        return torch.stack([pixels for pixels, _ in samples]), raw + long

    dataset = (
        wds.WebDataset(shards, shardshuffle=True)
        .shuffle(1000)
        .decode("pilrgb")
        .map(SampleMapper(tokenizer))
        .batched(batch, collation_fn=collate, partial=False)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def rate(batches: Iterator[Any], batch: int, skip: int) -> float:
    """Samples per second after the first `skip` batches, because the start of a loader does not slow a training."""
    for _ in range(skip):
        next(batches)
    start, count = time.perf_counter(), sum(1 for _ in batches)
    return count * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4, help="number of shards (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="samples per shard (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="samples per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, or threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="try the script: two shards of 100 samples, one round")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(shards=2, samples=100, batch=8, workers=1, rounds=1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        run = write_run(Path(scratch, "run"), options.shards, options.samples)
        tokenizer = make_tokenizer(Path(scratch, "bert"))
        steps = options.shards * options.samples // options.batch
        skip = 2 * options.workers
        rates: dict[str, list[float]] = {"ours": [], "webdataset": []}
        for turn in range(options.rounds + 1):  # the first is a warm-up
            sides = {
                "ours": lambda turn=turn: ours(run, tokenizer, options.batch, options.workers, turn * steps, steps),
                "webdataset": lambda: webdataset_batches(run, tokenizer, options.batch, options.workers),
            }
            for side in sorted(sides, reverse=bool(turn % 2)):
                samples_per_second = rate(sides[side](), options.batch, skip)
                if turn:
                    rates[side].append(samples_per_second)
    for side, values in rates.items():
        print(f"{side}: {statistics.median(values):.0f} samples/s ({', '.join(f'{value:.0f}' for value in values)})")
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["webdataset"], strict=True))
    print(json.dumps({"ours_vs_webdataset": round(ratio, 3)}))


def make_tokenizer(folder: Path) -> TextTokenizer:
    """A tokenizer of BERT's kind with the words of the texts; `folder` gets its files."""
    from transformers import BertTokenizerFast

    letters = [chr(code) for code in range(97, 123)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *WORDS]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return BertTextTokenizer(
        load_tokenizer(str(folder)), vocab_size=len(vocabulary), context_length=128, corner_tokens=2
    )


if __name__ == "__main__":
    main()
