"""Pre-train the two tiny towers on synthetic scenes and save them in the layout of the Hugging Face Hub.

    python -m lotlip_data.synthetic.train_towers [image|text] [--scenes crowded] [--out FOLDER]

tiny-vit learns to name the content of each cell, from the patches and from the class token, so that the class token
describes the whole scene, like that of a classifier. tiny-bert is a masked language model of the writers' texts. No
pairs of image and text are used, and only scenes of the split `tower_train`. Both take about eight minutes on one core.
Every training method starts from these towers. The towers of the reproduction study learn the same from crowded scenes;
tiny-vit-crowded starts from tiny-vit.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.hard_scenes import CAPTIONER_ERRORS, crowded_scene, crowded_text
from lotlip_data.synthetic.recipes.optimize import Schedule, minimise, shuffled
from lotlip_data.synthetic.recipes.perception import CLASSES, IGNORE, PIXELS, Pictures, draw_pictures
from lotlip_data.synthetic.scenes import BACKGROUNDS, PLACES, SPLITS, Scene, sample_scene

if TYPE_CHECKING:
    from transformers import BertConfig, ViTModel

CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
TINY_VIT = CHECKPOINTS / "tiny-vit"
TINY_BERT = CHECKPOINTS / "tiny-bert"

HIDDEN = 128
HELD_OUT = 512  # scenes, or texts
IMAGE_SCHEDULE = Schedule(steps=4000, batch=32, rate=1e-3, warm_up=200)
TEXT_SCHEDULE = Schedule(steps=1500, batch=32, rate=1e-3, warm_up=200)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class TowerRecipe:
    """What a pair of towers is trained on, and how."""

    vit: str
    """Name of the image tower."""
    bert: str
    """Name of the text tower."""
    scene: Callable[[int], Scene]
    """The scene of a seed."""
    texts: Callable[[Scene], list[str]]
    """The long texts of a scene."""
    seeds: Sequence[int]
    pictures: int
    """Number of scenes for the image tower."""
    image_schedule: Schedule
    max_tokens: int
    """Token limit of a text."""
    initial_vit: pathlib.Path | None = None
    """The folder of the ViT to start from; None starts from random weights."""


RECIPES = {
    "plain": TowerRecipe(
        vit=TINY_VIT.name,
        bert=TINY_BERT.name,
        scene=sample_scene,
        texts=lambda scene: [long_text(scene, writer) for writer in WRITERS],
        seeds=SPLITS["tower_train"],
        pictures=12_000,
        image_schedule=IMAGE_SCHEDULE,
        max_tokens=160,
    ),
    "crowded": TowerRecipe(
        vit="tiny-vit-crowded",
        bert="tiny-bert-crowded",
        scene=crowded_scene,
        texts=lambda scene: [crowded_text(scene, writer) for writer in (*CAPTIONER_ERRORS, "person", "detailed")],
        seeds=SPLITS["tower_train"][500_000:],
        pictures=24_000,
        image_schedule=Schedule(steps=6000, batch=32, rate=1e-3, warm_up=200),
        max_tokens=256,
        initial_vit=TINY_VIT,
    ),
}

_CARD = """---
library_name: transformers
license: apache-2.0
tags: [synthetic, test]
---
# {name}

{description} It is for the demo and the tests of lotlip-data.

**It knows nothing but synthetic scenes of coloured shapes** on a 3×3 grid (`lotlip_data.synthetic.scenes`). For real
images, use `{replacement}` instead.

{figures}

Trained by `python -m lotlip_data.synthetic.train_towers{options}`, on scenes that no LoTLIP training and no evaluation
uses.
"""


class SceneProbes(nn.Module):
    """Linear probes, discarded after training: from the class token to all cells, and from a patch to its own cell.

    A patch also predicts which cell it is in. Without this the class token learns what the scene contains, but hardly
    where.
    """

    def __init__(self) -> None:
        super().__init__()
        per_cell = sum(CLASSES.values())
        self.scene = nn.Linear(HIDDEN, len(PLACES) * per_cell + len(BACKGROUNDS))
        self.patch = nn.Linear(HIDDEN, per_cell)
        self.position = nn.Linear(HIDDEN, len(PLACES))
        row, column = torch.arange(36) // 6, torch.arange(36) % 6  # a cell has 2 × 2 patches of 16 pixels
        self.cell_of_patch = row // 2 * 3 + column // 2

    def loss(self, hidden: Tensor, pictures: Pictures, index: Tensor) -> Tensor:
        """The sum of the probes' losses. `hidden`: [B, 1 + 36, HIDDEN], class token first; `index`: [B] pictures."""
        cells, background = self._from_class_token(hidden)
        loss = functional.cross_entropy(background, pictures.backgrounds[index])
        position = self.position(hidden[:, 1:]).flatten(0, 1)
        loss = loss + functional.cross_entropy(position, self.cell_of_patch.repeat(len(index)))
        patches = self.patch(hidden[:, 1:]).split(list(CLASSES.values()), dim=-1)
        for name, scene, patch in zip(CLASSES, cells, patches, strict=True):
            target = pictures.cells[name][index]
            loss = loss + functional.cross_entropy(scene.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
            target = target[:, self.cell_of_patch]
            loss = loss + functional.cross_entropy(patch.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        return loss

    def accuracies(self, hidden: Tensor, pictures: Pictures, index: Tensor) -> dict[str, float]:
        """The share of labels that are predicted correctly from the class token, per attribute."""
        cells, background = self._from_class_token(hidden)
        accuracies = {"background": (background.argmax(-1) == pictures.backgrounds[index]).float().mean().item()}
        for name, logits in zip(CLASSES, cells, strict=True):
            target = pictures.cells[name][index]
            accuracies[name] = (logits.argmax(-1) == target)[target != IGNORE].float().mean().item()
        return accuracies

    def _from_class_token(self, hidden: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Logits [B, 9, classes] per attribute of the cells, and those of the background."""
        cells, background = self.scene(hidden[:, 0]).split(
            [len(PLACES) * sum(CLASSES.values()), len(BACKGROUNDS)], dim=-1
        )
        return cells.unflatten(-1, (len(PLACES), -1)).split(list(CLASSES.values()), dim=-1), background


def train_image_tower(folder: pathlib.Path, recipe: TowerRecipe) -> None:
    """Train a ViT of 4 layers, 128 wide, for 96 pixels in patches of 16, and save it in `folder`."""
    from transformers import ViTModel

    torch.manual_seed(0)
    tower, probes = _new_vit(), SceneProbes()
    if recipe.initial_vit:
        tower = ViTModel.from_pretrained(recipe.initial_vit, add_pooling_layer=False)
    schedule, images = recipe.image_schedule, recipe.pictures
    pictures = draw_pictures(recipe.seeds[:images], recipe.scene)

    def hidden_of(index: Tensor) -> Tensor:
        pixels = torch.from_numpy(pictures.pixels[index.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        hidden: Tensor = tower(pixel_values=pixels).last_hidden_state
        return hidden

    batches = shuffled(images - HELD_OUT, schedule.batch, seed=0)
    parameters = [*tower.parameters(), *probes.parameters()]
    minimise(recipe.vit, lambda index: probes.loss(hidden_of(index), pictures, index), batches, parameters, schedule)
    held_out = torch.arange(images - HELD_OUT, images)
    with torch.no_grad():
        accuracies = probes.accuracies(hidden_of(held_out), pictures, held_out)
    figures = f"Accuracy of linear probes on the class token, on {HELD_OUT} unseen scenes: "
    figures += ", ".join(f"{name} {share:.1%}" for name, share in accuracies.items()) + "."
    tower.save_pretrained(folder)
    _save_image_processor(folder)
    description = (
        "A ViT that learnt to name the content of each cell of a picture, from patches and from its class token."
    )
    _write_card(folder, description, "google/vit-base-patch16-224-in21k", figures)


def _new_vit() -> ViTModel:
    from transformers import ViTConfig, ViTModel

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
    return ViTModel(config, add_pooling_layer=False)


def _save_image_processor(folder: pathlib.Path) -> None:
    """Describe the preprocessing: pixels are scaled with mean = std = 0.5."""
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": PIXELS, "width": PIXELS},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def train_text_tower(folder: pathlib.Path, recipe: TowerRecipe, scenes: int = 8_000) -> None:
    """Train a BERT of 3 layers, 128 wide, 512 positions, and its WordPiece vocabulary, and save both in `folder`."""
    from transformers import BertForMaskedLM, BertModel

    torch.manual_seed(0)
    schedule = TEXT_SCHEDULE
    texts = list(_split_texts(recipe, recipe.seeds[:scenes]))
    tokenizer = _train_tokenizer([" ".join(sentences) for sentences in texts], folder)
    config = _bert_config(len(tokenizer))
    model = BertForMaskedLM(config)
    rng = np.random.default_rng(0)

    def loss_of(index: Tensor) -> Tensor:
        windows = [tokenizer.sep_token.join(_random_window(texts[i], rng)) for i in index.tolist()]
        batch = tokenizer(windows, padding=True, truncation=True, max_length=recipe.max_tokens, return_tensors="pt")
        ids, labels = _mask_tokens(batch.input_ids, tokenizer.all_special_ids, tokenizer.mask_token_id, len(tokenizer))
        loss: Tensor = model(input_ids=ids, attention_mask=batch.attention_mask, labels=labels).loss
        return loss

    batches = shuffled(len(texts) - HELD_OUT, schedule.batch, seed=0)
    minimise(recipe.bert, loss_of, batches, model.parameters(), schedule)
    model.eval()
    with torch.no_grad():
        held_out = torch.arange(len(texts) - HELD_OUT, len(texts))
        loss = torch.stack([loss_of(index) for index in held_out.split(64)]).mean().item()
    tower = BertModel(config)  # with a pooler, like BERT's checkpoints; it stays untrained
    tower.load_state_dict(model.bert.state_dict(), strict=False)
    tower.save_pretrained(folder)
    description = "A BERT that learnt to predict masked words in texts about synthetic scenes."
    figures = f"Masked language modelling loss on unseen texts: {loss:.3f}."
    _write_card(folder, description, "bert-base-uncased", figures)


def _bert_config(vocabulary: int) -> BertConfig:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _split_texts(recipe: TowerRecipe, seeds: Sequence[int]) -> Iterator[list[str]]:
    """The sentences of every long text, and the raw text, of each scene."""
    for scene in map(recipe.scene, seeds):
        for text in recipe.texts(scene):
            yield text.split(". ")
        yield [raw_text(scene)]


def _random_window(sentences: list[str], rng: np.random.Generator) -> list[str]:
    """A random number of consecutive sentences, like the trainer's sub-captions."""
    count = int(rng.integers(1, len(sentences) + 1))
    first = int(rng.integers(len(sentences) - count + 1))
    return sentences[first : first + count]


def _mask_tokens(ids: Tensor, special: list[int], mask_id: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Mask tokens as BERT does.

    15% of the tokens are selected. Of these, 80% become [MASK], 10% a random token, and 10% stay.

    Returns:
        The masked ids, and the labels, which are IGNORE for all tokens that are not selected.
    """
    selected = (torch.rand(ids.shape) < 0.15) & ~torch.isin(ids, torch.tensor(special))
    labels = ids.masked_fill(~selected, IGNORE)
    draw = torch.rand(ids.shape)
    ids = ids.masked_fill(selected & (draw < 0.8), mask_id)
    random = torch.randint(len(special), vocabulary, ids.shape)
    return torch.where(selected & (draw >= 0.9), random, ids), labels


def _train_tokenizer(texts: list[str], folder: pathlib.Path):  # type: ignore[no-untyped-def]
    """Train a WordPiece tokenizer like BERT's (lower case, special tokens first) and save it in `folder`."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(
        texts, vocab_size=800, min_frequency=50, show_progress=False, special_tokens=list(SPECIAL_TOKENS)
    )
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _write_card(folder: pathlib.Path, description: str, replacement: str, figures: str) -> None:
    """Print the figures and write the tower's README. `replacement`: the published tower for real images."""
    print(f"{folder.name}: {figures}", flush=True)
    options = " --scenes crowded" if folder.name.endswith("-crowded") else ""
    card = _CARD.format(
        name=folder.name, description=description, replacement=replacement, figures=figures, options=options
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", nargs="?", choices=["image", "text"], help="the tower to train (default: both)")
    parser.add_argument("--scenes", choices=list(RECIPES), default="plain", help="training scenes (default: plain)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=CHECKPOINTS,
        help="folder for the towers (default: the package's checkpoints)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[arguments.scenes]
    if arguments.tower != "text":
        train_image_tower(arguments.out / recipe.vit, recipe)
    if arguments.tower != "image":
        train_text_tower(arguments.out / recipe.bert, recipe)


if __name__ == "__main__":
    main()
