"""A tiny random ShareGPT4V with the names, files and fields of the published checkpoint."""

import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file

PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: <image>\nDescribe the image in detail. ASSISTANT:"
)
IMAGE, PATCH, TOWER, HEADS, TOWER_LAYERS = 32, 8, 32, 2, 3
WIDTH, LAYERS, INNER = 64, 2, 96
EPSILON, THETA = 1e-5, 10000.0


def write(
    folder: Path,
    *,
    file_format: str = "bin",
    shards: int = 2,
    stray_tower: bool = False,
    tower_format: str = "bin",
    seed: int = 0,
) -> Path:
    """Write `folder`/model and `folder`/tower, which the config names `../tower`. Returns the model's folder."""
    model, tower = folder / "model", folder / "tower"
    for checkpoint in (model, tower):
        checkpoint.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = _write_tokenizer(model)
    weights = _language_weights(vocabulary, generator)
    if stray_tower:
        weights |= {f"model.vision_tower.vision_tower.{n}": w * 0 for n, w in _tower_weights(generator).items()}
    _write_weights(model, weights, file_format, shards)
    _write_weights(tower, _tower_weights(generator), tower_format, 1)
    _write_json(model / "config.json", _model_config(vocabulary))
    _write_json(tower / "config.json", _tower_config())
    _write_json(tower / "preprocessor_config.json", _IMAGE_PROCESSOR)
    _write_json(model / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9})
    return model


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a published folder by its published name."""
    weights = {}
    for file in sorted(folder.glob("*.bin")):
        weights |= torch.load(file, weights_only=True)
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def _language_weights(vocabulary: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return weights of a large variance, so that the next token is never a near tie; special tokens never win."""
    sizes = {"lm_head.weight": (vocabulary, WIDTH), "model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        sizes |= {f"{name}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        sizes |= {f"{name}mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        sizes |= {f"{name}mlp.down_proj.weight": (WIDTH, INNER)}
    weights = {name: torch.randn(size, generator=generator) * 0.2 for name, size in sizes.items()}
    weights["lm_head.weight"][:4] = 0
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        weights |= {f"{name}{part}_layernorm.weight": torch.ones(WIDTH) for part in ("input", "post_attention")}
        weights[f"{name}self_attn.rotary_emb.inv_freq"] = THETA ** (
            -torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)
        )
    weights["model.norm.weight"] = torch.ones(WIDTH)
    for part, size in (("0", (WIDTH, TOWER)), ("2", (WIDTH, WIDTH))):
        weights[f"model.mm_projector.{part}.weight"] = torch.randn(size, generator=generator) * 0.3
        weights[f"model.mm_projector.{part}.bias"] = torch.randn(WIDTH, generator=generator) * 0.1
    return weights


def _tower_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) * 0.2

    positions = (IMAGE // PATCH) ** 2 + 1
    weights = {
        "embeddings.class_embedding": draw(TOWER),
        "embeddings.patch_embedding.weight": draw(TOWER, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": draw(positions, TOWER),
        "embeddings.position_ids": torch.arange(positions).unsqueeze(0),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(TOWER_LAYERS):
        name = f"encoder.layers.{layer}."
        norms += [f"{name}layer_norm1", f"{name}layer_norm2"]
        shapes = {f"self_attn.{part}_proj": (TOWER, TOWER) for part in ("q", "k", "v", "out")}
        for part, size in (shapes | {"mlp.fc1": (2 * TOWER, TOWER), "mlp.fc2": (TOWER, 2 * TOWER)}).items():
            weights |= {f"{name}{part}.weight": draw(*size), f"{name}{part}.bias": draw(size[0])}
    for name in norms:
        weights |= {f"{name}.weight": 1 + draw(TOWER), f"{name}.bias": draw(TOWER)}
    return {f"vision_model.{name}": weight for name, weight in weights.items()}


def _write_weights(folder: Path, weights: dict[str, torch.Tensor], file_format: str, shards: int) -> None:
    stem, ending = ("pytorch_model", "bin") if file_format == "bin" else ("model", "safetensors")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for position, name in enumerate(sorted(weights)):
        number = position * shards // len(weights) + 1
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{number:05d}-of-{shards:05d}.{ending}"
        parts.setdefault(file, {})[name] = weights[name]
    for file, part in parts.items():
        if file_format == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if shards > 1:
        size = sum(weight.nbytes for weight in weights.values())
        weight_map = {name: file for file, part in parts.items() for name in part}
        _write_json(
            folder / f"{stem}.{ending}.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
        )


def _write_tokenizer(folder: Path) -> int:
    """Write a byte-fallback BPE like Llama's, in Vicuna's files. Returns the size of the vocabulary."""
    text = PROMPT.replace("<image>\n", "") + " a red green blue circle square star is left right top bottom of it"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20 + text.split() * 10),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "padding_side": "right", "model_max_length": 2048}
    _write_json(
        folder / "tokenizer_config.json", {**special, **settings, "add_bos_token": True, "add_eos_token": False}
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()


def _model_config(vocabulary: int) -> dict:
    """Return the fields of the published config.json with the tiny sizes."""
    return {
        "_name_or_path": "Lin-Chen/ShareGPT4V-7B",
        "architectures": ["Share4VLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 512,
        "mm_hidden_size": TOWER,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "../tower",
        "model_type": "share4v",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": EPSILON,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "tune_entire_model": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": vocabulary,
    }


def _tower_config() -> dict:
    return {
        "architectures": ["CLIPVisionModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": TOWER,
        "image_size": IMAGE,
        "intermediate_size": 2 * TOWER,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": HEADS,
        "num_channels": 3,
        "num_hidden_layers": TOWER_LAYERS,
        "patch_size": PATCH,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
    }


_IMAGE_PROCESSOR = {
    "crop_size": {"height": IMAGE, "width": IMAGE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": IMAGE},
}


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2))
