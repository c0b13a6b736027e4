"""Writes a run's dataset of synthetic scenes and towers small enough for tests, and trains in another process."""

import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, ViTConfig, ViTModel

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.batch_encoder import Batch, BatchFeatures
from lotlip_data.training.loss import Loss
from lotlip_data.training.trainer import Trainer

# Trains on RUN into OUT with SETTINGS in JSON, in a process of its own. It prints every step, so that a test knows
# which steps were done. With SIGNAL_AFTER="RANK STEP" in its environment, the process of that rank sends itself the
# signal with the number SIGNAL after that step.
TRAINING_SCRIPT = """
import json, logging, os, signal, sys, torch
from lotlip_data.training.config import make_config
from lotlip_data.training.trainer import Trainer, train
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
run, out, settings = sys.argv[1:]
step = Trainer.step
def step_then_signal(self, number, batch):
    values = step(self, number, batch)
    print("done", number, flush=True)
    if os.environ.get("SIGNAL_AFTER") == f"{os.environ.get('RANK', 0)} {number}":
        signal.raise_signal(int(os.environ["SIGNAL"]))
    return values
Trainer.step = step_then_signal
torch.set_num_threads(1)
train(make_config(**json.loads(settings)), run, out)
"""


def batch_loss(trainer: Trainer, batch: Batch) -> tuple[Loss, BatchFeatures]:
    """The loss of a batch as `Trainer.step` computes it."""
    features = trainer.encode(batch)
    return trainer.loss(features), features


def write_run(
    folder: pathlib.Path,
    counts: Sequence[int] = (30, 20),
    mode: subcaptions.SplitMode = "punkt",
    scores: bool = False,
) -> str:
    """Write a dataset into `folder`/shards, with texts by all synthetic caption writers.

    Args:
        folder: The run's folder.
        counts: Number of samples in each shard.
        mode: How the long texts are split into sub-captions.
        scores: Whether it has the scores of the long texts and their sub-captions, at random; some are null.

    Returns:
        The URL of the run.
    """
    run = Run.at(str(folder))
    pathlib.Path(run.shards).mkdir(parents=True)
    seeds = iter(SPLITS["images"])
    shards = []
    for shard, count in enumerate(counts):
        rows = [_row(next(seeds), f"{shard:05d}{index:04d}", mode) for index in range(count)]
        tar, parquet = f"train-{shard:05d}.tar", f"train-{shard:05d}.parquet"
        pathlib.Path(run.shards, tar).write_bytes(_tar(rows))
        table = pa.Table.from_pylist([row for row, _ in rows], schema=schema.dataset(WRITERS))
        table = with_scores(table, np.random.default_rng(shard)) if scores else table
        pq.write_table(table, pathlib.Path(run.shards, parquet))
        files = {"tar": _file_record(run, tar), "parquet": _file_record(run, parquet)}
        shards.append({**files, "samples": count})
    description = {
        "schema_version": schema.SCHEMA_VERSION,
        "captioners": {name: f"{name}-0" for name in WRITERS},
        "sub_captions": mode,
        "samples": sum(counts),
        "shards": shards,
    }
    pathlib.Path(run.dataset).write_text(json.dumps(description))
    return run.url


def with_scores(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The table with random scores of the long texts and of their sub-captions. About one in ten is null."""

    def score() -> float | None:
        return None if rng.random() < 0.1 else float(rng.normal())

    for name in WRITERS:
        pieces = table[f"{name}_sub"].to_pylist()
        columns = {
            f"{name}_score": pa.array([score() for _ in pieces], pa.float32()),
            f"{name}_sub_scores": pa.array(
                [None if rng.random() < 0.1 else [score() for _ in each or ()] for each in pieces],
                pa.list_(pa.float32()),
            ),
        }
        for column, values in columns.items():
            present = column in table.column_names
            place = table.column_names.index(column) if present else table.num_columns
            table = table.set_column(place, column, values) if present else table.append_column(column, values)
    return table


def _file_record(run: Run, name: str) -> dict:
    content = pathlib.Path(run.shards, name).read_bytes()
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _row(seed: int, key: str, mode: subcaptions.SplitMode) -> tuple[dict, bytes]:
    """The Parquet row of a scene, and its encoded image."""
    scene = sample_scene(seed)
    buffer = io.BytesIO()
    render(scene).save(buffer, "JPEG", quality=95)
    row = {"key": key, "uid": f"{seed:032x}", "url": f"http://x/{seed}.jpg", "source": "world", "raw": raw_text(scene)}
    row |= {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "width": 96, "height": 96}
    for writer in WRITERS:
        text = long_text(scene, writer)
        row |= {writer: text, f"{writer}_sub": subcaptions.split(text, mode), f"{writer}_flags": ""}
    return row, buffer.getvalue()


def _tar(rows: list[tuple[dict, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row, image in rows:
            for extension, data in (("jpg", image), ("txt", row["raw"].encode()), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{row['key']}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
"""The sizes of ViT-B and BERT-base."""


def write_towers(
    folder: pathlib.Path, dropout: float = 0.1, positions: int = 128, sizes: Mapping[str, int] = TINY
) -> dict[str, str]:
    """Write two untrained towers, for images of 96×96 pixels. Returns them as settings of a training.

    Args:
        folder: Receives the towers' folders.
        dropout: Dropout of the text tower.
        positions: Number of positions of the text tower.
        sizes: Sizes of both towers.
    """
    torch.manual_seed(0)
    vit, bert = folder / "vit", folder / "bert"
    ViTModel(ViTConfig(**sizes, image_size=96, patch_size=32), add_pooling_layer=False).save_pretrained(vit)
    words = sorted({word for seed in range(200) for word in _words(seed)})
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *words]))
    tokenizer = BertTokenizerFast(str(bert / "vocab.txt"))
    tokenizer.save_pretrained(bert)
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**sizes, **dropouts, vocab_size=len(tokenizer), max_position_embeddings=positions)
    BertModel(config).save_pretrained(bert)
    return {"image_tower": str(vit), "text_tower": str(bert)}


def _words(seed: int) -> list[str]:
    scene = sample_scene(seed)
    texts = [long_text(scene, writer) for writer in WRITERS] + [raw_text(scene)]
    return "".join(letter if letter.isalpha() else " " for letter in " ".join(texts).lower()).split()
