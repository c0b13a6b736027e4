"""A run's folder with a dataset of the rendered world, and towers small enough for tests."""

import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, ViTConfig, ViTModel

from lotlip_data.manifests import schema, subcaptions
from lotlip_data.manifests.run_layout import Run
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene

# A training of RUN into OUT with SETTINGS in JSON, in a process of its own: it prints every step, so that a test knows
# where to kill it, and which steps were done. Told TOLD_AFTER="RANK STEP" it sends itself the signal TOLD after that.
TOLD_TRAINING = """
import json, logging, os, signal, sys, torch
from lotlip_data.training.config import make_config
from lotlip_data.training.trainer import Trainer, train
run, out, settings = sys.argv[1:]
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
step = Trainer.step
def told(self, number, batch):
    values = step(self, number, batch)
    print("done", number, flush=True)
    if os.environ.get("TOLD_AFTER") == f"{os.environ.get('RANK', 0)} {number}":
        signal.raise_signal(int(os.environ["TOLD"]))
    return values
Trainer.step = told
torch.set_num_threads(1)
train(make_config(**json.loads(settings)), run, out)
"""


def write_run(folder: pathlib.Path, counts: Sequence[int] = (30, 20), mode: subcaptions.SplitMode = "punkt") -> str:
    """A dataset in `folder`/shards of so many samples a shard, described by the writers themselves."""
    run = Run.at(str(folder))
    pathlib.Path(run.shards).mkdir(parents=True)
    seeds = iter(SPLITS["images"])
    shards = []
    for shard, count in enumerate(counts):
        rows = [_row(next(seeds), f"{shard:05d}{index:04d}", mode) for index in range(count)]
        tar, parquet = f"train-{shard:05d}.tar", f"train-{shard:05d}.parquet"
        pathlib.Path(run.shards, tar).write_bytes(content := _tar(rows))
        table = pa.Table.from_pylist([row for row, _ in rows], schema=schema.dataset(WRITERS))
        pq.write_table(table, pathlib.Path(run.shards, parquet))
        record = {"tar": {"name": tar, "sha256": hashlib.sha256(content).hexdigest()}, "parquet": {"name": parquet}}
        shards.append({**record, "samples": count})
    description = {
        "schema_version": schema.SCHEMA_VERSION,
        "captioners": {name: f"{name}-0" for name in WRITERS},
        "sub_captions": mode,
        "samples": sum(counts),
        "shards": shards,
    }
    pathlib.Path(run.dataset).write_text(json.dumps(description))
    return run.url


def _row(seed: int, key: str, mode: subcaptions.SplitMode) -> tuple[dict, bytes]:
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
            for ending, data in (("jpg", image), ("txt", row["raw"].encode()), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{row['key']}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_towers(folder: pathlib.Path, dropout: float = 0.1, positions: int = 128) -> dict[str, str]:
    """Two untrained towers, 32 wide; returned as settings of a training."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
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
