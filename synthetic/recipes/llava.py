"""tiny-llava and tiny-sharegpt4v: LLaVA's architecture at a small size, trained in stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lotlip_data.synthetic.caption_writers import long_text
from lotlip_data.synthetic.recipes.language import HIDDEN, PROMPTS, llama_config, llama_tokenizer, train_language_model
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

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, LlamaTokenizer, LlavaForConditionalGeneration

TOWER_SCHEDULE = Schedule(steps=2000, batch=32, rate=1e-3, warm_up=100)
TUNING_SCHEDULE = Schedule(steps=300, batch=32, rate=3e-4, warm_up=30)
LANGUAGE_SCHEDULE = Schedule(steps=2400, batch=16, rate=1.5e-3, warm_up=200)


def new_tower() -> CLIPVisionModel:
    """An untrained CLIP vision tower for 96 pixels in patches of 16."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=PIXELS,
            patch_size=PIXELS // PATCHES,
            projection_dim=HIDDEN,
        )
    )


def patch_features(tower: CLIPVisionModel, pixel_values: Tensor) -> Tensor:
    """(B, 36, 128): the output of the last layer but one without the class token, as in LLaVA."""
    return tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]


def train_tower(name: str, tower: CLIPVisionModel, pictures: Pictures, schedule: Schedule, seed: int) -> None:
    """Train or fine-tune the tower until each patch encodes its cell, the cell's content and the background."""
    tower.train()
    probes = CellProbes(HIDDEN, cell_of_patch())
    train_encoder(
        name,
        lambda pixels: patch_features(tower, pixels),
        pictures.pixel_values,
        list(tower.parameters()),
        probes,
        pictures,
        schedule,
        seed,
    )
    tower.eval()


def new_llava(tower: CLIPVisionModel, tokenizer: LlamaTokenizer) -> LlavaForConditionalGeneration:
    """A LLaVA with a copy of the tower and an untrained projector and Llama."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower.config,
            text_config=llama_config(tokenizer),
            image_token_index=tokenizer.get_vocab()["<image>"],
            image_seq_length=PATCHES**2,
        )
    )
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


def train_captioner(
    writer: str, tower: CLIPVisionModel, pictures: Pictures, schedule: Schedule, seed: int
) -> tuple[LlavaForConditionalGeneration, LlamaTokenizer]:
    """Cache the frozen tower's features and train projector and Llama on the writer's texts."""
    texts = [long_text(scene, writer) for scene in pictures.scenes]
    tokenizer = llama_tokenizer([*texts, *[PROMPTS[writer].replace("<image>", "")] * 1000])
    model = new_llava(tower, tokenizer)
    features = encode_all(lambda pixels: patch_features(tower, pixels), pictures.pixel_values, len(pictures))
    prompt = tokenizer(PROMPTS[writer].replace("<image>", "<image>" * PATCHES**2)).input_ids
    answers = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    train_language_model(
        f"tiny-{writer} language model",
        model.model.multi_modal_projector,
        model.model.language_model,
        model.lm_head,
        features,
        prompt,
        tokenizer.get_vocab()["<image>"],
        answers,
        schedule,
        seed,
    )
    return model.eval(), tokenizer
