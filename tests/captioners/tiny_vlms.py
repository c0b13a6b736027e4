"""Vision-language models of a few thousand random parameters, one per family, in the layout of the hub's checkpoints.

transformers' own classes write the weights, the tokenizer, the processor files and the configuration. Matrices have a
large variance, so that the next token is never a near tie and a text depends on its image.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = """
Describe the image in detail . You are helpful answer user assistant USER ASSISTANT : A red green blue circle square
star is left right top below above large small dark bright two three sky tree house dog cat bird water road
"""
BASE = ["<pad>", "<s>", "</s>", "<unk>"]
PATCH = 8
NEWLINES = ["\n" * count for count in range(1, 5)]
"""Tokens that vLLM looks up in the vocabularies of Gemma 3 and PaliGemma."""

CHATML = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
"""The form of Qwen's, InternVL's and LLaVA-OneVision's templates; IMAGE stands for the family's placeholder."""

TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] if "
    "message['content'] is string else message['content'][0]['text'] }} {% else %}USER : {% for part in "
    "message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %} {{ part['text'] }}{% endif %}{% endfor %} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
"""The form of templates that write the start token themselves."""


def write(family: str, folder: Path) -> Path:
    """Write the tiny checkpoint of a family into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEEDS.get(family, 0))
    FAMILIES[family](folder)
    return folder


def _qwen2_5_vl(folder: Path) -> None:
    tokens = _qwen_tokens(folder, "Qwen2_5_VLProcessor")
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH}
    vision |= {"out_hidden_size": 64, "window_size": 2 * PATCH * 2, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=_text(tokens)
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}},
        **_qwen_ids(tokens),
    )
    _save(transformers.Qwen2_5_VLForConditionalGeneration(config), folder)
    mean_and_deviation = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    _qwen_images(folder, "Qwen2_5_VLProcessor", mean_and_deviation)


def _qwen3_vl(folder: Path) -> None:
    tokens = _qwen_tokens(folder, "Qwen3VLProcessor")
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH}
    vision |= {"out_hidden_size": 64, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
    config = transformers.Qwen3VLConfig(
        vision_config=vision,
        text_config=_text(tokens) | {"head_dim": 32, "rope_parameters": rope},
        **_qwen_ids(tokens),
    )
    _save(transformers.Qwen3VLForConditionalGeneration(config), folder)
    _qwen_images(folder, "Qwen3VLProcessor", {})


def _qwen_tokens(folder: Path, processor: str) -> PreTrainedTokenizerFast:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return _tokenizer(folder, special, template, processor, eos="<|im_end|>", adds_start=False)


def _qwen_ids(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = ("vision_start", "vision_end")
    ids = {f"{name}_token_id": tokens.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    pads = {f"{name}_token_id": tokens.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    return ids | pads | {"tie_word_embeddings": False}


def _qwen_images(folder: Path, processor: str, further: dict[str, Any]) -> None:
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
        "size": {"shortest_edge": 16 * PATCH**2, "longest_edge": 144 * PATCH**2},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    _json(folder / "preprocessor_config.json", images | further)


def _internvl(folder: Path) -> None:
    special = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tokens = _tokenizer(
        folder,
        special,
        CHATML.replace("IMAGE", "<IMG_CONTEXT>"),
        "InternVLProcessor",
        eos="<|im_end|>",
        adds_start=False,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": [4 * PATCH, 4 * PATCH], "patch_size": [PATCH, PATCH], "layer_scale_init_value": 1.0}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2"} | _text(tokens),
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    _save(transformers.InternVLForConditionalGeneration(config), folder)
    side = {"height": 4 * PATCH, "width": 4 * PATCH}
    images = {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True, "size": side}
    images |= {"min_patches": 1, "max_patches": 4, "processor_class": "InternVLProcessor"}
    _json(folder / "preprocessor_config.json", images)
    _json(folder / "processor_config.json", {"processor_class": "InternVLProcessor", "image_seq_length": 4})


def _idefics3(folder: Path, processor: str = "Idefics3") -> None:
    special = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
    special += [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    template = CHATML.replace("IMAGE", "<image>").replace("<|im_end|>", "<end_of_utterance>")
    tokens = _tokenizer(
        folder,
        special,
        template,
        f"{processor}Processor",
        eos="<end_of_utterance>",
        adds_start=False,
    )
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 4 * PATCH, "patch_size": PATCH, "model_type": f"{processor.lower()}_vision"}
    config = getattr(transformers, f"{processor}Config")(
        vision_config=vision,
        text_config={"model_type": "llama"} | _text(tokens),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    _save(getattr(transformers, f"{processor}ForConditionalGeneration")(config), folder)
    images = {
        "image_processor_type": f"{processor}ImageProcessor",
        "size": {"longest_edge": 8 * PATCH},
        "max_image_size": {"longest_edge": 4 * PATCH},
    }
    _json(folder / "preprocessor_config.json", images | {"processor_class": f"{processor}Processor"})
    _json(folder / "processor_config.json", {"processor_class": f"{processor}Processor", "image_seq_len": 4})


def _smolvlm(folder: Path) -> None:
    _idefics3(folder, "SmolVLM")


def _gemma3(folder: Path) -> None:
    special = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    template = TURNS.replace("IMAGE", "<start_of_image>")
    tokens = _tokenizer(folder, special, template, "Gemma3Processor", NEWLINES, eos="<end_of_turn>", **named)
    config = transformers.Gemma3Config(
        vision_config=_siglip(4),
        text_config=_text(tokens)
        | {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
        mm_tokens_per_image=4,
        boi_token_index=tokens.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokens.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=True,
    )
    _save(transformers.Gemma3ForConditionalGeneration(config), folder)
    side = {"height": 4 * PATCH, "width": 4 * PATCH}
    images = {"image_processor_type": "Gemma3ImageProcessor", "size": side, "processor_class": "Gemma3Processor"}
    images |= {"image_seq_length": 4, "do_pan_and_scan": None}
    _json(folder / "preprocessor_config.json", images)
    _json(folder / "processor_config.json", {"processor_class": "Gemma3Processor", "image_seq_length": 4})


def _llava_next(folder: Path) -> None:
    tokens = _tokenizer(folder, ["<image>"], TURNS.replace("IMAGE", "<image>"), "LlavaNextProcessor")
    side = 4 * PATCH
    grid = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    vision = {"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": side, "patch_size": PATCH, "projection_dim": 32}
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config={"model_type": "llama"} | _text(tokens),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
    )
    _save(transformers.LlavaNextForConditionalGeneration(config), folder)
    images = {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": side}}
    images |= {"crop_size": {"height": side, "width": side}, "image_grid_pinpoints": grid}
    _json(folder / "preprocessor_config.json", images | {"processor_class": "LlavaNextProcessor"})
    processor = {"processor_class": "LlavaNextProcessor", "patch_size": PATCH, "image_token": "<image>"}
    processor |= {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    _json(folder / "processor_config.json", processor)


def _llava_onevision(folder: Path) -> None:
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    template = CHATML.replace("IMAGE", "<image>")
    tokens = _tokenizer(folder, special, template, "LlavaOnevisionProcessor", eos="<|im_end|>", adds_start=False)
    side = 4 * PATCH
    grid = [[height * side, width * side] for height in range(1, 5) for width in range(1, 5)]
    config = transformers.LlavaOnevisionConfig(
        vision_config=_siglip(4),
        text_config={"model_type": "qwen2"} | _text(tokens),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    _save(transformers.LlavaOnevisionForConditionalGeneration(config), folder)
    images = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": side, "width": side}}
    images |= {"image_grid_pinpoints": grid, "processor_class": "LlavaOnevisionProcessor"}
    _json(folder / "preprocessor_config.json", images)
    processor = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16, "image_token": "<image>"}
    processor |= {"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    _json(folder / "processor_config.json", processor)


def _paligemma(folder: Path) -> None:
    tokens = _tokenizer(folder, ["<image>"], None, "PaliGemmaProcessor", NEWLINES, adds_start=False, ends_lines=True)
    text = _text(tokens) | {"model_type": "gemma", "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"}
    text |= {"vocab_size": len(tokens) + 1024 + 128}
    config = transformers.PaliGemmaConfig(
        vision_config=_siglip(4) | {"projection_dim": 64},
        text_config=text,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        hidden_size=64,
    )
    _save(transformers.PaliGemmaForConditionalGeneration(config), folder)
    images = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 4 * PATCH, "width": 4 * PATCH}}
    images |= {"image_seq_length": 16, "processor_class": "PaliGemmaProcessor"}
    _json(folder / "preprocessor_config.json", images)


def _mistral3(folder: Path) -> None:
    special = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    tokens = _tokenizer(folder, special, TURNS.replace("IMAGE", "[IMG]"), "PixtralProcessor")
    vision = {"model_type": "pixtral", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 12 * PATCH, "patch_size": PATCH, "head_dim": 32}
    config = transformers.Mistral3Config(
        vision_config=vision,
        text_config={"model_type": "mistral", "head_dim": 32} | _text(tokens),
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    _save(transformers.Mistral3ForConditionalGeneration(config), folder)
    images = {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 12 * PATCH}}
    images |= {"patch_size": {"height": PATCH, "width": PATCH}, "processor_class": "PixtralProcessor"}
    _json(folder / "preprocessor_config.json", images)
    processor = {"processor_class": "PixtralProcessor", "patch_size": PATCH, "spatial_merge_size": 2}
    _json(folder / "processor_config.json", processor)


def _joycaption(folder: Path) -> None:
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]
    template = TURNS.replace("IMAGE", "<image>")
    tokens = _tokenizer(folder, special, template, "LlavaProcessor", eos="<|eot_id|>")
    config = transformers.LlavaConfig(
        vision_config=_siglip(4),
        text_config={"model_type": "llama"} | _text(tokens) | {"num_key_value_heads": 1},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    _save(transformers.LlavaForConditionalGeneration(config), folder)
    images = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 4 * PATCH, "width": 4 * PATCH}}
    _json(folder / "preprocessor_config.json", images | {"processor_class": "LlavaProcessor"})
    processor = {"processor_class": "LlavaProcessor", "patch_size": PATCH, "image_token": "<image>"}
    processor |= {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    _json(folder / "processor_config.json", processor)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "qwen2.5-vl": _qwen2_5_vl,
    "qwen3-vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "llava-next": _llava_next,
    "llava-onevision": _llava_onevision,
    "paligemma": _paligemma,
    "mistral3": _mistral3,
    "joycaption": _joycaption,
}
"""What writes the checkpoint of each family."""

SEEDS = {"joycaption": 2}
"""Seeds of families whose weights with seed 0 leave two tokens nearly equal somewhere."""


def _text(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A language model of two layers, with the token ids of its tokenizer."""
    ids = {"bos_token_id": 1, "eos_token_id": tokens.eos_token_id, "pad_token_id": 0}
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 1024, "vocab_size": len(tokens)}
    return shape | ids | {"tie_word_embeddings": False}


def _siglip(patches: int) -> dict[str, Any]:
    """A SigLIP tower without a pooling head, of `patches` × `patches`."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"image_size": patches * PATCH, "patch_size": PATCH}
    return {"model_type": "siglip_vision_model", "vision_use_head": False} | shape


def _tokenizer(
    folder: Path,
    special: list[str],
    template: str | None,
    processor: str,
    further: Sequence[str] = (),
    eos: str = "</s>",
    adds_start: bool = True,
    ends_lines: bool = False,
    **named: str,
) -> PreTrainedTokenizerFast:
    """Write a tokenizer of whole words, in which every text has one tokenization.

    Args:
        folder: Where the files go.
        special: Special tokens of the family.
        template: Its chat template.
        processor: Name of its processor.
        further: Further entries of its vocabulary.
        eos: Its end token.
        adds_start: Whether it adds the start token by itself.
        ends_lines: Whether the end of a line is a token.
        named: Special tokens that the processor reads from attributes of the tokenizer.
    """
    entries = dict.fromkeys([*BASE, *special, *further, *WORDS.split()])
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends_lines:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
        )
    if adds_start:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=named or special,
        chat_template=template,
    )
    if named:
        tokens.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    tokens.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    _json(file, json.loads(file.read_text()) | {"processor_class": processor})
    return tokens


def _save(model: torch.nn.Module, folder: Path) -> None:
    """Scale up every matrix, keep special tokens but the end token from being generated, and save."""
    special = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    end = model.config.get_text_config().eos_token_id
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():  # Gemma 3's projector of images
                torch.nn.init.normal_(parameter, std=0.02)
            if parameter.dim() > 1:
                parameter.mul_(6.0)
        output = model.get_output_embeddings().weight
        if output is model.get_input_embeddings().weight:  # otherwise each token would predict itself
            output.mul_(0.02)
        rows = [token["id"] for token in special if token["id"] != end]
        output[rows] = 0
    model.save_pretrained(folder)


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1))
