"""Pre-train the trainer's two tiny towers on this world, without captions, and save them in the hub's layout.

    python -m lotlip_data.synthetic.train_towers [image|text] [--world crowded] [--out FOLDER]

tiny-vit names what is in each cell, from its class token too, so that this token carries the whole scene as that of a
classifier does. tiny-bert is a masked language model of the writers' texts. Both see only seeds of `tower_train`:
about eight minutes on one core. Every method that is compared starts from them. The crowded world's towers, of the
reproduction study, learn the same of scenes of more things: tiny-vit-crowded goes on from tiny-vit.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.hard_scenes import EYESIGHT, crowded_scene, crowded_text
from lotlip_data.synthetic.recipes.optimize import Schedule, minimise, shuffled
from lotlip_data.synthetic.recipes.perception import CLASSES, IGNORE, PIXELS, Pictures, draw_pictures
from lotlip_data.synthetic.scenes import BACKGROUNDS, PLACES, SPLITS, Scene, sample_scene

CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
TINY_VIT = CHECKPOINTS / "tiny-vit"
TINY_BERT = CHECKPOINTS / "tiny-bert"

HIDDEN = 128
HELD_OUT = 512
IMAGE_SCHEDULE = Schedule(steps=4000, batch=32, rate=1e-3, warm_up=200)
TEXT_SCHEDULE = Schedule(steps=1500, batch=32, rate=1e-3, warm_up=200)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Lessons:
    """What both towers learn of: a seed's scene and its long texts. `start`: whose weights the ViT goes on from."""

    vit: str
    bert: str
    scene: Callable[[int], Scene]
    texts: Callable[[Scene], list[str]]
    seeds: Sequence[int]
    pictures: int
    image: Schedule
    longest: int
    """Tokens of a text."""
    start: pathlib.Path | None = None


LESSONS = {
    "plain": Lessons(
        vit=TINY_VIT.name,
        bert=TINY_BERT.name,
        scene=sample_scene,
        texts=lambda scene: [long_text(scene, writer) for writer in WRITERS],
        seeds=SPLITS["tower_train"],
        pictures=12_000,
        image=IMAGE_SCHEDULE,
        longest=160,
    ),
    "crowded": Lessons(
        vit="tiny-vit-crowded",
        bert="tiny-bert-crowded",
        scene=crowded_scene,
        texts=lambda scene: [crowded_text(scene, writer) for writer in (*EYESIGHT, "person", "detailed")],
        seeds=SPLITS["tower_train"][500_000:],
        pictures=24_000,
        image=Schedule(steps=6000, batch=32, rate=1e-3, warm_up=200),
        longest=256,
        start=TINY_VIT,
    ),
}

_CARD = """---
library_name: transformers
license: apache-2.0
tags: [synthetic, test]
---
# {name}

{what} It knows nothing but a small rendered world of coloured shapes on a 3×3 grid, and serves the demo and the tests
of lotlip-data: for real work name `{real}` in its place.

{figures}

Made by `python -m lotlip_data.synthetic.train_towers{command}`, on scenes that no training or evaluation uses.
"""


class SceneHeads(nn.Module):
    """Linear probes, thrown away after training: the class token names all nine cells, a patch its own.

    A patch also names which cell it is in. Without this the class token learns what there is, but hardly where.
    """

    def __init__(self) -> None:
        super().__init__()
        per_cell = sum(CLASSES.values())
        self.scene = nn.Linear(HIDDEN, len(PLACES) * per_cell + len(BACKGROUNDS))
        self.patch = nn.Linear(HIDDEN, per_cell)
        self.where = nn.Linear(HIDDEN, len(PLACES))
        row, column = torch.arange(36) // 6, torch.arange(36) % 6  # 2 × 2 patches of 16 pixels a cell
        self.cell_of_patch = row // 2 * 3 + column // 2

    def loss(self, hidden: Tensor, pictures: Pictures, index: Tensor) -> Tensor:
        """`hidden` [B, 1 + 36, HIDDEN], the class token first."""
        cells, background = self._scene(hidden)
        loss = functional.cross_entropy(background, pictures.backgrounds[index])
        where = self.where(hidden[:, 1:]).flatten(0, 1)
        loss = loss + functional.cross_entropy(where, self.cell_of_patch.repeat(len(index)))
        patches = self.patch(hidden[:, 1:]).split(list(CLASSES.values()), dim=-1)
        for name, scene, patch in zip(CLASSES, cells, patches, strict=True):
            target = pictures.cells[name][index]
            loss = loss + functional.cross_entropy(scene.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
            target = target[:, self.cell_of_patch]
            loss = loss + functional.cross_entropy(patch.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        return loss

    def accuracies(self, hidden: Tensor, pictures: Pictures, index: Tensor) -> dict[str, float]:
        """Share of what the class token names rightly."""
        cells, background = self._scene(hidden)
        right = {"background": (background.argmax(-1) == pictures.backgrounds[index]).float().mean().item()}
        for name, logits in zip(CLASSES, cells, strict=True):
            target = pictures.cells[name][index]
            right[name] = (logits.argmax(-1) == target)[target != IGNORE].float().mean().item()
        return right

    def _scene(self, hidden: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        cells, background = self.scene(hidden[:, 0]).split(
            [len(PLACES) * sum(CLASSES.values()), len(BACKGROUNDS)], dim=-1
        )
        return cells.unflatten(-1, (len(PLACES), -1)).split(list(CLASSES.values()), dim=-1), background


def train_image_tower(folder: pathlib.Path, lessons: Lessons) -> None:
    """A ViT of 4 layers, 128 wide, for 96 pixels in patches of 16; pixels scaled with mean = std = 0.5."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN,
        image_size=PIXELS,
        patch_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tower, heads = ViTModel(config, add_pooling_layer=False), SceneHeads()
    if lessons.start:
        tower = ViTModel.from_pretrained(lessons.start, add_pooling_layer=False)
    schedule, images = lessons.image, lessons.pictures
    pictures = draw_pictures(lessons.seeds[:images], lessons.scene)

    def hidden_of(index: Tensor) -> Tensor:
        pixels = torch.from_numpy(pictures.pixels[index.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        hidden: Tensor = tower(pixel_values=pixels).last_hidden_state
        return hidden

    batches = shuffled(images - HELD_OUT, schedule.batch, seed=0)
    parameters = [*tower.parameters(), *heads.parameters()]
    minimise(lessons.vit, lambda index: heads.loss(hidden_of(index), pictures, index), batches, parameters, schedule)
    held_out = torch.arange(images - HELD_OUT, images)
    with torch.no_grad():
        right = heads.accuracies(hidden_of(held_out), pictures, held_out)
    figures = f"Read linearly from the class token of {HELD_OUT} unseen scenes: "
    figures += ", ".join(f"{name} {share:.1%}" for name, share in right.items()) + "."
    tower.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": PIXELS, "width": PIXELS},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    what = "A ViT that learnt to name the cells of a picture, from patches and from its class token."
    _write_card(folder, what, "google/vit-base-patch16-224-in21k", figures)


def train_text_tower(folder: pathlib.Path, lessons: Lessons, scenes: int = 8_000) -> None:
    """A BERT of 3 layers, 128 wide, 512 positions, with a WordPiece vocabulary of this world."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    torch.manual_seed(0)
    schedule = TEXT_SCHEDULE
    texts = list(_sentences(lessons, lessons.seeds[:scenes]))
    tokenizer = _train_tokenizer([" ".join(sentences) for sentences in texts], folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    rng = np.random.default_rng(0)

    def loss_of(index: Tensor) -> Tensor:
        chosen = [tokenizer.sep_token.join(_window(texts[i], rng)) for i in index.tolist()]
        batch = tokenizer(chosen, padding=True, truncation=True, max_length=lessons.longest, return_tensors="pt")
        ids, labels = _hide(batch.input_ids, tokenizer.all_special_ids, tokenizer.mask_token_id, len(tokenizer))
        loss: Tensor = model(input_ids=ids, attention_mask=batch.attention_mask, labels=labels).loss
        return loss

    batches = shuffled(len(texts) - HELD_OUT, schedule.batch, seed=0)
    minimise(lessons.bert, loss_of, batches, model.parameters(), schedule)
    model.eval()
    with torch.no_grad():
        held_out = torch.arange(len(texts) - HELD_OUT, len(texts))
        loss = torch.stack([loss_of(index) for index in held_out.split(64)]).mean().item()
    tower = BertModel(config)  # as BERT's own, with a pooler; nothing here trains it, so it starts as it was drawn
    tower.load_state_dict(model.bert.state_dict(), strict=False)
    tower.save_pretrained(folder)
    what = "A BERT that learnt to fill in the words hidden in texts about such pictures."
    _write_card(folder, what, "bert-base-uncased", f"Masked language modelling loss on unseen texts: {loss:.3f}.")


def _sentences(lessons: Lessons, seeds: Sequence[int]) -> Iterator[list[str]]:
    """Each scene as each writer tells it, sentence by sentence, and its raw text."""
    for scene in map(lessons.scene, seeds):
        for text in lessons.texts(scene):
            yield text.split(". ")
        yield [raw_text(scene)]


def _window(sentences: list[str], rng: np.random.Generator) -> list[str]:
    """Some consecutive sentences, as the trainer will show them."""
    count = int(rng.integers(1, len(sentences) + 1))
    first = int(rng.integers(len(sentences) - count + 1))
    return sentences[first : first + count]


def _hide(ids: Tensor, special: list[int], mask_id: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """BERT's recipe: of 15% of the words, 80% become [MASK], 10% another word, 10% stay; labels elsewhere are -100."""
    chosen = (torch.rand(ids.shape) < 0.15) & ~torch.isin(ids, torch.tensor(special))
    labels = ids.masked_fill(~chosen, IGNORE)
    dice = torch.rand(ids.shape)
    ids = ids.masked_fill(chosen & (dice < 0.8), mask_id)
    random = torch.randint(len(special), vocabulary, ids.shape)
    return torch.where(chosen & (dice >= 0.9), random, ids), labels


def _train_tokenizer(texts: list[str], folder: pathlib.Path):  # type: ignore[no-untyped-def]
    """WordPiece as BERT's: lower case, special tokens first; saved in `folder` as tokenizer.json."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(
        texts, vocab_size=800, min_frequency=50, show_progress=False, special_tokens=list(SPECIAL)
    )
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _write_card(folder: pathlib.Path, what: str, real: str, figures: str) -> None:
    print(f"{folder.name}: {figures}", flush=True)
    command = " --world crowded" if folder.name.endswith("-crowded") else ""
    (folder / "README.md").write_text(
        _CARD.format(name=folder.name, what=what, real=real, figures=figures, command=command)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", nargs="?", choices=["image", "text"], help="only this one (default: both)")
    parser.add_argument("--world", choices=list(LESSONS), default="plain", help="whose towers (default: plain)")
    parser.add_argument("--out", type=pathlib.Path, default=CHECKPOINTS, help="default: the package's own checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lessons = LESSONS[arguments.world]
    if arguments.tower != "text":
        train_image_tower(arguments.out / lessons.vit, lessons)
    if arguments.tower != "image":
        train_text_tower(arguments.out / lessons.bert, lessons)


if __name__ == "__main__":
    main()
