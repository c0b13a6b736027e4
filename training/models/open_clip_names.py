"""The names of CLIP's tensors in open_clip and in transformers.

open_clip keeps the three projections of an attention in one tensor, and multiplies with the transpose of transformers'
projections. Values are never computed with, so names go to transformers and back bit for bit.

    open_clip                                transformers
    logit_scale                              logit_scale
    visual.conv1.weight                      vision_model.embeddings.patch_embedding.weight
    visual.transformer.resblocks.N.…         vision_model.encoder.layers.N.…
    visual.proj                              visual_projection.weight, transposed
    token_embedding.weight                   text_model.embeddings.token_embedding.weight
    transformer.resblocks.N.…                text_model.encoder.layers.N.…
    text_projection                          text_projection.weight, transposed
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_LAYERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IN_PROJECTION = "attn.in_proj_"
_QKV = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
_LAYER_NAME = re.compile(r"(?P<stack>.+?)\.(?P<number>\d+)\.(?P<part>.+)")


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under the names of transformers' CLIPModel. Raises KeyError for a name that is not CLIP's."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _WHOLE:
            renamed[_WHOLE[name]] = value
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = value.T
        else:
            match = _LAYER_NAME.fullmatch(name)
            if match is None or match["stack"] not in _LAYERS:
                raise KeyError(name)
            layer, part = f"{_LAYERS[match['stack']]}.{match['number']}.", match["part"]
            if part.startswith(_IN_PROJECTION):
                kind = part.removeprefix(_IN_PROJECTION)
                renamed |= {f"{layer}{one}{kind}": third for one, third in zip(_QKV, value.chunk(3), strict=True)}
            else:
                module, _, kind = part.rpartition(".")
                renamed[f"{layer}{_PARTS[module]}.{kind}"] = value
    return renamed


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_transformers`. Raises KeyError for a name that is not CLIP's."""
    whole, transposed = _inverse(_WHOLE), _inverse(_TRANSPOSED)
    layers, parts = _inverse(_LAYERS), _inverse(_PARTS)
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in whole:
            renamed[whole[name]] = value
        elif name in transposed:
            renamed[transposed[name]] = value.T
        else:
            match = _LAYER_NAME.fullmatch(name)
            if match is None or match["stack"] not in layers:
                raise KeyError(name)
            layer, (module, _, kind) = f"{layers[match['stack']]}.{match['number']}.", match["part"].rpartition(".")
            if f"{module}." not in _QKV:
                renamed[f"{layer}{parts[module]}.{kind}"] = value
            elif f"{module}." == _QKV[0]:
                stem = name.removesuffix(_QKV[0] + kind)
                renamed[f"{layer}{_IN_PROJECTION}{kind}"] = torch.cat([weights[stem + one + kind] for one in _QKV])
    return renamed


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}
