"""Saliency maps: which patches of an image make its feature similar to that of a text (as in the paper's Fig. 6).

The paper does not say how it computes its maps. The attention of a locked image tower does not depend on the text, so
it is weighted by its effect on the similarity:

    M(p) = max(0, Σ_h A_h([CLS], p) · ∂s / ∂A_h([CLS], p))        s = cos(image feature, text feature)

where A_h is the attention of head h in the image tower's last layer and p is a patch. To first order, M(p) is how much
the similarity decreases if [CLS] does not attend to the patch.
"""

import copy
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.models.lotlip import LoTLIP
from lotlip_data.training.models.pooling import pool, reads_class_token, unmasked_inputs


@dataclass(frozen=True)
class Saliency:
    """The saliency map of a text over an image."""

    patches: Tensor
    """M as float32 [rows, columns] ≥ 0, over the center crop that the tower receives."""
    similarity: float
    """s of the whole image and the text."""
    truncated: bool
    """Whether the text exceeds the context length, so that its end is ignored."""


def saliency(model: LoTLIP, image: Image.Image, text: str) -> Saliency:
    """The saliency map of a text over an image.

    Raises:
        UserError: The image tower's feature is not that of a class token.
    """
    tower = model.towers.image
    if not reads_class_token(tower.pooling, tower.vit.config):
        raise UserError(
            f"saliency maps need an image tower with a class token; {type(tower.vit).__name__} has none to look from"
        )
    encoded = model.tokenizer.encode([text])
    feature = model.embed_tokens(encoded)[0]
    original = tower.vit
    # Only eager attention returns its weights. The copy shares all tensors and has settings of its own.
    shared = itertools.chain(original.parameters(), original.buffers())
    vit = copy.deepcopy(original, {id(tensor): tensor for tensor in shared})
    vit.set_attn_implementation("eager")
    pixels = model.transform([image]).to(next(vit.parameters()).device).requires_grad_()
    with torch.enable_grad():
        inputs = unmasked_inputs(vit.config, pixels)
        output = vit.eval()(pixel_values=pixels, output_attentions=True, **inputs)
        similarity = F.normalize(pool(output, tower.pooling)[0], dim=-1) @ feature.to(pixels.device)
        attention = output.attentions[-1]
        (gradient,) = torch.autograd.grad(similarity, attention)
    side = pixels.shape[-1] // vit.config.patch_size
    weighted = (attention * gradient)[0, :, 0, -side * side :].sum(dim=0).clamp(min=0)
    return Saliency(weighted.view(side, side).detach().cpu(), similarity.item(), encoded.truncated[0])
