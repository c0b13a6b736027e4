"""Save a captioner like its published counterpart on the Hub, and caption pictures with a saved one.

A saved captioner has the files and weight names of the published checkpoint, in half precision. Captioning uses
transformers alone.
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


# LLaVA's turns; a conversation of one question results in the prompt of `PROMPTS`.
CHAT_TEMPLATE = (
    "{{% if messages[0]['role'] != 'system' %}}{system}{{% endif %}}{{% for message in messages %}}"
    "{{% if message['role'] == 'system' %}}{{{{ message['content'][0]['text'] }}}} {{% else %}}"
    "{{{{ message['role'].upper() }}}}: "
    "{{% for part in message['content'] if part['type'] == 'image' %}}<image>\n{{% endfor %}}"
    "{{% for part in message['content'] if part['type'] == 'text' %}}{{{{ part['text'] }}}} {{% endfor %}}"
    "{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}ASSISTANT:{{% endif %}}"
)

README = """# {name}

A captioner of {millions:.1f} million parameters in the architecture of {architecture}.
It is for the demo and the tests of lotlip-data.

**It knows nothing but synthetic scenes of coloured shapes** (`lotlip_data.synthetic.scenes`): one to four objects on a
plain background, at 96 pixels. It describes coloured shapes even if an image shows something else.

- Prompt: `{prompt}`
- Decoding: greedy; the model ends each text itself.
- Trained by `python -m lotlip_data.synthetic.train_captioners`.
- Measured by `python -m lotlip_data.synthetic.measure_captioners`.
"""


def save_llava(model: LlavaForConditionalGeneration, tokenizer: LlamaTokenizer, prompt: str, folder: Path) -> None:
    """Save in LLaVA-1.5's layout, whose weights `vision_tower.vision_model.…` vLLM and transformers read."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}),
        tokenizer,
        patch_size=PIXELS // PATCHES,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.format(system=prompt.partition("USER: ")[0]),
    )
    own_tower = "" if folder.name == "tiny-llava" else " with its own vision tower, like ShareGPT4V"
    _save(model, processor, prompt, f"LLaVA-1.5{own_tower}", folder)
    _rename(folder / "model.safetensors", "vision_tower.", "vision_tower.vision_model.")


def save_instructblip(
    model: InstructBlipForConditionalGeneration,
    tokenizer: LlamaTokenizer,
    qformer_tokenizer: BertTokenizer,
    prompt: str,
    folder: Path,
) -> None:
    """Save in InstructBLIP's layout, with the Q-Former's tokenizer in its own folder."""
    from transformers import BlipImageProcessorPil, InstructBlipProcessor

    image_processor = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    processor = InstructBlipProcessor(
        image_processor, tokenizer, qformer_tokenizer, num_query_tokens=model.config.num_query_tokens
    )
    _save(model, processor, prompt, "InstructBLIP", folder)


def _save(model: PreTrainedModel, processor: ProcessorMixin, prompt: str, architecture: str, folder: Path) -> None:
    """Write the model in half precision, the processor and the README."""
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
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    model.float()
    processor.save_pretrained(folder)
    # Published checkpoints describe the image processor in a separate file, which older readers use.
    image_processor = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2) + "\n")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    readme = README.format(
        name=folder.name, millions=millions, architecture=architecture, prompt=prompt.replace("\n", "\\n")
    )
    (folder / "README.md").write_text(readme)


def _rename(weights: Path, prefix: str, new: str) -> None:
    """Rename weights by prefix: transformers 5 drops the `vision_model.` of the names on the Hub."""
    from safetensors.torch import load_file, save_file

    renamed = {
        new + name.removeprefix(prefix) if name.startswith(prefix) and not name.startswith(new) else name: tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


class Captioner:
    """A saved tiny captioner, loaded in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoProcessor, InstructBlipForConditionalGeneration, LlavaForConditionalGeneration

        model_type = json.loads((folder / "config.json").read_text())["model_type"]
        kind = InstructBlipForConditionalGeneration if model_type == "instructblip" else LlavaForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.prompt = PROMPTS[folder.name.removeprefix("tiny-")]

    def __call__(self, images: Sequence[Image.Image]) -> list[tuple[str, bool]]:
        """For each image, its greedily decoded text and whether the model ended it within 256 tokens."""
        inputs = self.processor(images=list(images), text=[self.prompt] * len(images), return_tensors="pt")
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=256)[:, inputs["input_ids"].shape[1] :]
        tokenizer = self.processor.tokenizer
        ended = (tokens == tokenizer.eos_token_id).any(1).tolist()
        return list(zip(tokenizer.batch_decode(tokens, skip_special_tokens=True), ended, strict=True))
