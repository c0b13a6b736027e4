"""Write a captioner as the hub has its published kin: same files, same weight names, half precision.

Caption pictures with a saved tiny captioner through transformers alone, to measure it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lotlip_data.synthetic.recipes.language import PROMPTS
from lotlip_data.synthetic.recipes.perception import PATCHES, PIXELS

if TYPE_CHECKING:
    from transformers import (
        BertTokenizer,
        InstructBlipForConditionalGeneration,
        LlamaTokenizer,
        LlavaForConditionalGeneration,
        PreTrainedModel,
        ProcessorMixin,
    )


# LLaVA's own turns; a conversation of one question gives the prompt of `PROMPTS`.
CHAT_TEMPLATE = (
    "{{% if messages[0]['role'] != 'system' %}}{system}{{% endif %}}{{% for message in messages %}}"
    "{{% if message['role'] == 'system' %}}{{{{ message['content'][0]['text'] }}}} {{% else %}}"
    "{{{{ message['role'].upper() }}}}: "
    "{{% for part in message['content'] if part['type'] == 'image' %}}<image>\n{{% endfor %}}"
    "{{% for part in message['content'] if part['type'] == 'text' %}}{{{{ part['text'] }}}} {{% endfor %}}"
    "{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}ASSISTANT:{{% endif %}}"
)

README = """# {name}

A captioner of {millions:.1f} million parameters in the architecture of {kin},
for tests and demonstrations of lotlip-data.

**It knows nothing but rendered scenes of coloured shapes** (`lotlip_data.synthetic.scenes`): one to four things on a
plain background, at 96 pixels. Shown anything else, it still describes coloured shapes.

- Prompt: `{prompt}`
- Decoding: greedy; it ends each text itself.
- Made by `python -m lotlip_data.synthetic.train_captioners`;
  measured by `python -m lotlip_data.synthetic.measure_captioners`.
"""


def save_llava(model: LlavaForConditionalGeneration, tokenizer: LlamaTokenizer, prompt: str, folder: Path) -> None:
    """LLaVA-1.5's layout: `vision_tower.vision_model.…`, which vLLM reads and transformers too."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}),
        tokenizer,
        patch_size=PIXELS // PATCHES,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.format(system=prompt.partition("USER: ")[0]),
    )
    kin = "LLaVA-1.5" if folder.name == "tiny-llava" else "LLaVA-1.5 with a vision tower of its own, as ShareGPT4V has"
    _save(model, processor, prompt, kin, folder)
    _rename(folder / "model.safetensors", "vision_tower.", "vision_tower.vision_model.")


def save_instructblip(
    model: InstructBlipForConditionalGeneration,
    tokenizer: LlamaTokenizer,
    qformer_tokenizer: BertTokenizer,
    prompt: str,
    folder: Path,
) -> None:
    """InstructBLIP's layout, the Q-Former's tokenizer in a folder of its own."""
    from transformers import InstructBlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    image_processor = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    processor = InstructBlipProcessor(
        image_processor, tokenizer, qformer_tokenizer, num_query_tokens=model.config.num_query_tokens
    )
    _save(model, processor, prompt, "InstructBLIP", folder)


def _save(model: PreTrainedModel, processor: ProcessorMixin, prompt: str, kin: str, folder: Path) -> None:
    from transformers import GenerationConfig

    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
    model.float()
    processor.save_pretrained(folder)
    # The published folders describe the image processor in a file of its own, and older readers look there.
    described = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(described, indent=2) + "\n")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    shown = prompt.replace("\n", "\\n")
    (folder / "README.md").write_text(README.format(name=folder.name, millions=millions, kin=kin, prompt=shown))


def _rename(weights: Path, prefix: str, new: str) -> None:
    """transformers 5 drops the `vision_model.` that the hub's names have."""
    from safetensors.torch import load_file, save_file

    renamed = {
        new + name.removeprefix(prefix) if name.startswith(prefix) and not name.startswith(new) else name: tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


class Captioner:
    """A captioner's folder, loaded in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoProcessor, InstructBlipForConditionalGeneration, LlavaForConditionalGeneration

        model_type = json.loads((folder / "config.json").read_text())["model_type"]
        kind = InstructBlipForConditionalGeneration if model_type == "instructblip" else LlavaForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.prompt = PROMPTS[folder.name.removeprefix("tiny-")]

    def __call__(self, images: Sequence[Image.Image]) -> list[tuple[str, bool]]:
        """Greedy text of each image, and whether the model ended it itself within 256 tokens."""
        inputs = self.processor(images=list(images), text=[self.prompt] * len(images), return_tensors="pt")
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=256)[:, inputs["input_ids"].shape[1] :]
        tokenizer = self.processor.tokenizer
        ended = (tokens == tokenizer.eos_token_id).any(1).tolist()
        return list(zip(tokenizer.batch_decode(tokens, skip_special_tokens=True), ended, strict=True))
