"""tiny-instructblip: a ViT, a Q-Former that also reads the instruction, and a Llama, trained in stages.

Trained together with the language model, the Q-Former learns nothing within minutes. So it is first trained until each
of its nine queries encodes one cell, and then frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lotlip_data.synthetic.caption_writers import long_text
from lotlip_data.synthetic.recipes.language import (
    HIDDEN,
    INSTRUCTION,
    bert_tokenizer,
    llama_config,
    llama_tokenizer,
    train_language_model,
)
from lotlip_data.synthetic.recipes.optimize import Schedule
from lotlip_data.synthetic.recipes.perception import (
    PATCHES,
    PIXELS,
    CellProbes,
    Pictures,
    cell_of_patch,
    encode_all,
    train_encoder,
)
from lotlip_data.synthetic.scenes import PLACES

if TYPE_CHECKING:
    from transformers import BertTokenizer, InstructBlipForConditionalGeneration, LlamaTokenizer

QUERIES = len(PLACES)
TOWER_SCHEDULE = Schedule(steps=2000, batch=32, rate=1e-3, warm_up=100)
QFORMER_SCHEDULE = Schedule(steps=1500, batch=32, rate=1e-3, warm_up=100)
LANGUAGE_SCHEDULE = Schedule(steps=2400, batch=16, rate=1.5e-3, warm_up=200)


def new_instructblip(tokenizer: LlamaTokenizer, qformer_vocabulary: int) -> InstructBlipForConditionalGeneration:
    """The untrained model. Its queries start with different values, because equal ones would stay equal."""
    from transformers import (
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
    )

    vision = InstructBlipVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=PIXELS // PATCHES,
        initializer_range=0.02,
    )
    qformer = InstructBlipQFormerConfig(
        vocab_size=qformer_vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        cross_attention_frequency=1,
        encoder_hidden_size=HIDDEN,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = InstructBlipForConditionalGeneration(
        InstructBlipConfig(
            vision_config=vision,
            qformer_config=qformer,
            text_config=llama_config(tokenizer),
            num_query_tokens=QUERIES,
            image_token_index=tokenizer.get_vocab()["<image>"],
        )
    )
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    return model


def train_captioner(
    pictures: Pictures, seed: int, language: Schedule = LANGUAGE_SCHEDULE
) -> tuple[InstructBlipForConditionalGeneration, LlamaTokenizer, BertTokenizer]:
    """Train the tower, then the Q-Former on the frozen tower, then projection and Llama on the frozen Q-Former."""
    texts = [long_text(scene, "instructblip") for scene in pictures.scenes]
    tokenizer = llama_tokenizer([*texts, *[INSTRUCTION] * 1000])
    qformer_tokenizer = bert_tokenizer([INSTRUCTION])
    model = new_instructblip(tokenizer, len(qformer_tokenizer))
    tower_features = _train_tower(model, pictures, seed)
    query_features = _train_qformer(model, qformer_tokenizer, tower_features, pictures, seed + 1)
    image_token = tokenizer.get_vocab()["<image>"]
    prompt = [image_token] * QUERIES + tokenizer(INSTRUCTION).input_ids
    answers = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    train_language_model(
        "tiny-instructblip language model",
        model.language_projection,
        model.language_model.model,
        model.language_model.lm_head,
        query_features,
        prompt,
        image_token,
        answers,
        language,
        seed + 2,
    )
    return model.eval(), tokenizer, qformer_tokenizer


def _train_tower(model: InstructBlipForConditionalGeneration, pictures: Pictures, seed: int) -> Tensor:
    """Train the vision tower; returns its features of all pictures, (N, 1 + 36, HIDDEN)."""
    tower = model.vision_model
    train_encoder(
        "tiny-instructblip tower",
        lambda pixels: tower(pixel_values=pixels).last_hidden_state[:, 1:],
        pictures.pixel_values,
        list(tower.parameters()),
        CellProbes(HIDDEN, cell_of_patch()),
        pictures,
        TOWER_SCHEDULE,
        seed,
    )
    return encode_all(lambda pixels: tower(pixel_values=pixels).last_hidden_state, pictures.pixel_values, len(pictures))


def _train_qformer(
    model: InstructBlipForConditionalGeneration,
    qformer_tokenizer: BertTokenizer,
    tower_features: Tensor,
    pictures: Pictures,
    seed: int,
) -> Tensor:
    """Train the Q-Former; returns its query outputs of all pictures, (N, QUERIES, HIDDEN)."""
    instruction = torch.tensor(qformer_tokenizer(INSTRUCTION).input_ids)

    def query_outputs(images: Tensor) -> Tensor:
        ids = instruction.expand(len(images), -1)
        mask = torch.ones(len(images), QUERIES + len(instruction), dtype=torch.long)
        queries = model.query_tokens.expand(len(images), -1, -1)
        outputs = model.qformer(input_ids=ids, attention_mask=mask, query_embeds=queries, encoder_hidden_states=images)
        return outputs.last_hidden_state[:, :QUERIES]

    train_encoder(
        "tiny-instructblip Q-Former",
        query_outputs,
        lambda index: tower_features[index],
        [model.query_tokens, *model.qformer.parameters()],
        CellProbes(HIDDEN, torch.arange(QUERIES)),
        pictures,
        QFORMER_SCHEDULE,
        seed,
    )
    return encode_all(query_outputs, lambda index: tower_features[index], len(pictures))
