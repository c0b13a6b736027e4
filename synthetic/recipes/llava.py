"""tiny-llava and tiny-sharegpt4v: LLaVA's real architecture, trained in stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lotlip_data.synthetic.caption_writers import long_text
from lotlip_data.synthetic.recipes.language import HIDDEN, PROMPTS, llama_config, llama_tokenizer, teach_writing
from lotlip_data.synthetic.recipes.optimize import Schedule
from lotlip_data.synthetic.recipes.perception import PATCHES, PIXELS, CellHeads, Pictures, cached, cell_of_patch, teach

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, LlamaTokenizer, LlavaForConditionalGeneration

TOWER = Schedule(steps=2000, batch=32, rate=1e-3, warm_up=100)
TUNING = Schedule(steps=300, batch=32, rate=3e-4, warm_up=30)
WRITING = Schedule(steps=2400, batch=16, rate=1.5e-3, warm_up=200)


def new_tower() -> CLIPVisionModel:
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
    """(B, 36, 128): the last layer but one without the class token, which is what LLaVA reads."""
    return tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]


def teach_tower(name: str, tower: CLIPVisionModel, pictures: Pictures, schedule: Schedule, seed: int) -> None:
    """Train or go on tuning the tower: each patch tells its cell, what is in it, and the background."""
    tower.train()
    heads = CellHeads(HIDDEN, cell_of_patch())
    teach(
        name,
        lambda pixels: patch_features(tower, pixels),
        pictures.pixel_values,
        list(tower.parameters()),
        heads,
        pictures,
        schedule,
        seed,
    )
    tower.eval()


def new_llava(tower: CLIPVisionModel, tokenizer: LlamaTokenizer) -> LlavaForConditionalGeneration:
    """A LLaVA around a copy of this tower, its projector and Llama still untrained."""
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


def teach_llava(
    writer: str, tower: CLIPVisionModel, pictures: Pictures, schedule: Schedule, seed: int
) -> tuple[LlavaForConditionalGeneration, LlamaTokenizer]:
    """Freeze the tower, cache its features, and teach projector and Llama this writer's texts."""
    texts = [long_text(scene, writer) for scene in pictures.scenes]
    tokenizer = llama_tokenizer([*texts, *[PROMPTS[writer].replace("<image>", "")] * 1000])
    model = new_llava(tower, tokenizer)
    features = cached(lambda pixels: patch_features(tower, pixels), pictures.pixel_values, len(pictures))
    prompt = tokenizer(PROMPTS[writer].replace("<image>", "<image>" * PATCHES**2)).input_ids
    answers = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    teach_writing(
        f"tiny-{writer} writing",
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
