"""Where in an image a text is seen: the attention that makes the two features alike (paper, Fig. 6).

The paper does not say how its maps are made. Of a locked image tower the attention itself knows nothing of the text,
so it is weighted by what it does for their similarity:

    M(p) = max(0, Σ_h A_h([CLS], p) · ∂s / ∂A_h([CLS], p))        s = cos(image feature, text feature)

where A_h is head h of the image tower's last layer, and p a patch: to first order, how much less alike they would be if
[CLS] did not look there.
"""

import copy
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lotlip_data.training.models.lotlip import LoTLIP


@dataclass(frozen=True)
class Saliency:
    """The map as float32 [rows, columns] of patches, none below 0, over the centre crop that the tower sees."""

    patches: Tensor
    similarity: float
    """s, of the whole image and the text."""
    cut: bool
    """Whether the text is longer than the context length, so that its end is not seen."""


def saliency(model: LoTLIP, image: Image.Image, text: str) -> Saliency:
    """Where the model sees the text in the image; it has to be a ViT with a class token and square patches."""
    encoded = model.tokenizer.encode([text])
    feature = model.embed_tokens(encoded)[0]
    ours = model.towers.image.vit
    # Only eager attention tells its weights. The copy has the very parameters, and settings of its own.
    vit = copy.deepcopy(ours, {id(one): one for one in itertools.chain(ours.parameters(), ours.buffers())})
    vit.set_attn_implementation("eager")
    pixels = model.transform([image]).to(next(vit.parameters()).device).requires_grad_()
    with torch.enable_grad():
        seen = vit.eval()(pixel_values=pixels, output_attentions=True)
        similarity = F.normalize(seen.last_hidden_state[0, 0], dim=-1) @ feature.to(pixels.device)
        attention = seen.attentions[-1]
        (gradient,) = torch.autograd.grad(similarity, attention)
    side = pixels.shape[-1] // vit.config.patch_size
    weighted = (attention * gradient)[0, :, 0, -side * side :].sum(dim=0).clamp(min=0)
    return Saliency(weighted.view(side, side).detach().cpu(), similarity.item(), encoded.cut[0])
