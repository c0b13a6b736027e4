"""tiny-instructblip: ViT, a Q-Former that also reads the instruction, and Llama, trained in stages.

Trained together with the language model the Q-Former learns nothing in minutes. Pre-trained so that each of its nine
queries tells one cell, and then frozen, it gives the language model all it needs.
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
    teach_writing,
)
from lotlip_data.synthetic.recipes.optimize import Schedule
from lotlip_data.synthetic.recipes.perception import PATCHES, PIXELS, CellHeads, Pictures, cached, cell_of_patch, teach
from lotlip_data.synthetic.scenes import PLACES

if TYPE_CHECKING:
    from transformers import BertTokenizer, InstructBlipForConditionalGeneration, LlamaTokenizer

QUERIES = len(PLACES)
TOWER = Schedule(steps=2000, batch=32, rate=1e-3, warm_up=100)
QFORMER = Schedule(steps=1500, batch=32, rate=1e-3, warm_up=100)
WRITING = Schedule(steps=2400, batch=16, rate=1.5e-3, warm_up=200)


def new_instructblip(tokenizer: LlamaTokenizer, qformer_vocabulary: int) -> InstructBlipForConditionalGeneration:
    """The untrained model; its queries start apart, since equal ones would stay equal."""
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


def teach_instructblip(
    pictures: Pictures, seed: int, writing: Schedule = WRITING
) -> tuple[InstructBlipForConditionalGeneration, LlamaTokenizer, BertTokenizer]:
    """Tower, then Q-Former on the frozen tower's features, then projection and Llama on the frozen Q-Former's."""
    texts = [long_text(scene, "instructblip") for scene in pictures.scenes]
    tokenizer = llama_tokenizer([*texts, *[INSTRUCTION] * 1000])
    qformer_tokenizer = bert_tokenizer([INSTRUCTION])
    model = new_instructblip(tokenizer, len(qformer_tokenizer))
    seen = _teach_tower(model, pictures, seed)
    asked = _teach_qformer(model, qformer_tokenizer, seen, pictures, seed + 1)
    image_token = tokenizer.get_vocab()["<image>"]
    prompt = [image_token] * QUERIES + tokenizer(INSTRUCTION).input_ids
    answers = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    teach_writing(
        "tiny-instructblip writing",
        model.language_projection,
        model.language_model.model,
        model.language_model.lm_head,
        asked,
        prompt,
        image_token,
        answers,
        writing,
        seed + 2,
    )
    return model.eval(), tokenizer, qformer_tokenizer


def _teach_tower(model: InstructBlipForConditionalGeneration, pictures: Pictures, seed: int) -> Tensor:
    tower = model.vision_model
    teach(
        "tiny-instructblip tower",
        lambda pixels: tower(pixel_values=pixels).last_hidden_state[:, 1:],
        pictures.pixel_values,
        list(tower.parameters()),
        CellHeads(HIDDEN, cell_of_patch()),
        pictures,
        TOWER,
        seed,
    )
    return cached(lambda pixels: tower(pixel_values=pixels).last_hidden_state, pictures.pixel_values, len(pictures))


def _teach_qformer(
    model: InstructBlipForConditionalGeneration,
    qformer_tokenizer: BertTokenizer,
    seen: Tensor,
    pictures: Pictures,
    seed: int,
) -> Tensor:
    instruction = torch.tensor(qformer_tokenizer(INSTRUCTION).input_ids)

    def query_outputs(images: Tensor) -> Tensor:
        ids = instruction.expand(len(images), -1)
        mask = torch.ones(len(images), QUERIES + len(instruction), dtype=torch.long)
        queries = model.query_tokens.expand(len(images), -1, -1)
        outputs = model.qformer(input_ids=ids, attention_mask=mask, query_embeds=queries, encoder_hidden_states=images)
        return outputs.last_hidden_state[:, :QUERIES]

    teach(
        "tiny-instructblip Q-Former",
        query_outputs,
        lambda index: seen[index],
        [model.query_tokens, *model.qformer.parameters()],
        CellHeads(HIDDEN, torch.arange(QUERIES)),
        pictures,
        QFORMER,
        seed,
    )
    return cached(query_outputs, lambda index: seen[index], len(pictures))
