"""Randomly initialised LLaVA and InstructBLIP checkpoints of a few thousand parameters, in the hub's file layout.

Weights have a large variance, so that the next token is never a near tie and a caption depends on its image.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

WORDS = "USER : ASSISTANT Describe the image in detail . A red green blue circle square star is left right top"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
VOCABULARY = len(dict.fromkeys(SPECIAL + WORDS.split()))
SIZE = 32
PATCH = 8


def write_llava(folder: Path, *, seed: int = 0, end_bias: float = 0.0, byte_level: bool = False) -> Path:
    """A LLaVA of hidden size 32 with 16 image tokens, whose other tokens are words or the 256 bytes."""
    tokenizer = write_tokenizer(folder, byte_level=byte_level, image_token="<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=32,
        ),
        text_config=llama(len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    _widen(model, end_bias)
    model.save_pretrained(folder)
    _use_hub_names(folder / "model.safetensors")
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        folder
    )
    _use_hub_processor_name(folder, "CLIPImageProcessor")
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def write_pixtral(folder: Path) -> Path:
    """A LLaVA whose tower takes images of any shape, as mistral-community/pixtral-12b; `<image>` is its image token."""
    tokenizer = write_tokenizer(folder, image_token="<image>")
    tower = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=2 * SIZE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=llama(len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    image_processor = {
        "image_processor_type": "PixtralImageProcessor",
        "size": {"longest_edge": 2 * SIZE},
        "patch_size": {"height": PATCH, "width": PATCH},
    }
    processor = {
        "processor_class": "PixtralProcessor",
        "image_token": "<image>",
        "image_break_token": "<unk>",
        "image_end_token": "</s>",
        "patch_size": PATCH,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def write_llava_next(folder: Path) -> Path:
    """A LLaVA-NeXT, which cuts an image into tiles by its shape."""
    write_llava(folder)
    source = LlavaConfig.from_pretrained(folder)
    config = LlavaNextConfig(
        vision_config=source.vision_config,
        text_config=source.text_config,
        image_token_index=source.image_token_id,
        image_grid_pinpoints=[[SIZE, 2 * SIZE], [2 * SIZE, SIZE]],
        vision_feature_select_strategy="default",
    )
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    LlavaNextImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_grid_pinpoints=config.image_grid_pinpoints,
    ).save_pretrained(folder)
    _use_hub_processor_name(folder, "LlavaNextImageProcessor")
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(processor | {"processor_class": "LlavaNextProcessor"}))
    return folder


def write_instructblip(
    folder: Path,
    *,
    seed: int = 0,
    end_bias: float = 0.0,
    text_config: PreTrainedConfig | None = None,
    byte_level: bool = False,
) -> Path:
    """An InstructBLIP of hidden size 32 with 4 query tokens, and a Llama or the model of `text_config`."""
    tokenizer = write_tokenizer(folder, byte_level=byte_level)
    write_tokenizer(folder / "qformer_tokenizer", byte_level=byte_level)
    vision = InstructBlipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_range=0.02,
    )
    qformer = InstructBlipQFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        encoder_hidden_size=32,
        max_position_embeddings=64,
    )
    config = InstructBlipConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text_config or llama(len(tokenizer)),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=bool(text_config and text_config.tie_word_embeddings),
    )
    torch.manual_seed(seed)
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    _widen(model, end_bias)
    model.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    _use_hub_processor_name(folder, "BlipImageProcessor")
    processor = {"processor_class": "InstructBlipProcessor", "num_query_tokens": 4}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def llama(vocabulary: int = VOCABULARY, *, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )


def write_tokenizer(
    folder: Path, words: Sequence[str] = (*SPECIAL, *WORDS.split()), *, byte_level: bool = False, **named: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, whose first four are those of SPECIAL, or of bytes.

    Args:
        folder: The checkpoint.
        words: The vocabulary.
        byte_level: Whether the tokens are SPECIAL and the 256 bytes.
        named: Attributes that name a token.
    """
    words = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())) if byte_level else words
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    if byte_level:
        core = Tokenizer(models.BPE(vocabulary, []))
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=named or ["<image>"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _widen(model: torch.nn.Module, end_bias: float) -> None:
    """Scale up every matrix, and set the end token's row of the output matrix to `end_bias` times another row."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
            if name.endswith("lm_head.weight"):
                parameter[:5] = 0  # special tokens are never generated …
                parameter[2] = end_bias * parameter[5]  # … except the end token


def _use_hub_names(file: Path) -> None:
    """Rename transformers' `vision_tower.embeddings…` to `vision_tower.vision_model.…`, as on the hub and in vLLM."""
    weights = load_file(file)
    if not any(name.startswith("vision_tower.vision_model.") for name in weights):
        weights = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): w for name, w in weights.items()}
    save_file(weights, file, metadata={"format": "pt"})


def _use_hub_processor_name(folder: Path, image_processor: str) -> None:
    """Name the image processor as the published checkpoints do, so that either backend can be chosen on load."""
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"image_processor_type": image_processor}))
