"""ShareGPT4V's forward pass on the published layout, written from its description.

It shares no code with the converter and transformers' LLaVA, so that both can be compared with it.
"""

import math
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F

from tests.captioners.convert.tiny_sharegpt4v import EPSILON, HEADS, LAYERS, PATCH, PROMPT, THETA, TOWER_LAYERS, read


def prompt_ids(folder: Path, prompt: str = PROMPT) -> list[int]:
    """Return <s> and the ids of the prompt's two parts, encoded separately, with -200 for the image between them."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    before, after = prompt.split("<image>")
    return [1, *tokenizer.encode(before), -200, *tokenizer.encode(after)]


@torch.no_grad()
def forward(folder: Path, pixels_BCHW: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Return (B, L, V) logits of B images under one prompt, in which the image's 16 features replace -200."""
    weights, tower = read(folder), read(folder.parent / "tower")
    images_BND = _projected(weights, _tower_features(tower, pixels_BCHW))
    image = ids.index(-200)
    embed = weights["model.embed_tokens.weight"]
    before, after = (
        embed[torch.tensor(part)].expand(len(pixels_BCHW), -1, -1) for part in (ids[:image], ids[image + 1 :])
    )
    return _llama(weights, torch.cat([before, images_BND, after], dim=1))


def _projected(weights: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """mlp2x_gelu: two linear layers with a GELU between them."""
    inner = F.gelu(_linear(weights, "model.mm_projector.0", features))
    return _linear(weights, "model.mm_projector.2", inner)


def _tower_features(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Return CLIP's hidden state of layer -2, the output of the second last layer, without the class token."""
    name = "vision_model.embeddings."
    patches = F.conv2d(pixels, weights[name + "patch_embedding.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = weights[name + "class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + weights[name + "position_embedding.weight"]
    x = _norm(weights, "vision_model.pre_layrnorm", x)
    for layer in range(TOWER_LAYERS - 1):
        name = f"vision_model.encoder.layers.{layer}."
        normed = _norm(weights, name + "layer_norm1", x)
        q, k, v = (_heads(_linear(weights, f"{name}self_attn.{part}_proj", normed)) for part in "qkv")
        x = x + _linear(weights, name + "self_attn.out_proj", _attend(q, k, v, causal=False))
        inner = _linear(weights, name + "mlp.fc1", _norm(weights, name + "layer_norm2", x))
        x = x + _linear(weights, name + "mlp.fc2", inner * torch.sigmoid(1.702 * inner))  # quick_gelu
    return x[:, 1:]


def _llama(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        normed = _rms(weights[name + "input_layernorm.weight"], x)
        q, k, v = (_heads(_linear(weights, f"{name}self_attn.{part}_proj", normed)) for part in "qkv")
        x = x + _linear(weights, name + "self_attn.o_proj", _attend(_rotated(q), _rotated(k), v, causal=True))
        normed = _rms(weights[name + "post_attention_layernorm.weight"], x)
        gate = F.silu(_linear(weights, name + "mlp.gate_proj", normed))
        x = x + _linear(weights, name + "mlp.down_proj", gate * _linear(weights, name + "mlp.up_proj", normed))
    return _rms(weights["model.norm.weight"], x) @ weights["lm_head.weight"].T


def _linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[name + ".weight"], weights.get(name + ".bias"))


def _norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], 1e-5)


def _rms(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def _heads(x_BLD: torch.Tensor) -> torch.Tensor:
    return x_BLD.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _attend(q_BHLE: torch.Tensor, k_BHLE: torch.Tensor, v_BHLE: torch.Tensor, *, causal: bool) -> torch.Tensor:
    scores = q_BHLE @ k_BHLE.transpose(-1, -2) / math.sqrt(q_BHLE.shape[-1])
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
    return (scores.softmax(-1) @ v_BHLE).transpose(1, 2).flatten(2)


def _rotated(x_BHLE: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: coordinates i and i + E/2 rotate together by position / theta^(2i/E)."""
    length, size = x_BHLE.shape[-2:]
    angle = torch.arange(length)[:, None] * THETA ** (-torch.arange(0, size, 2) / size)
    first, second = x_BHLE.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)
