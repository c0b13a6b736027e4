"""Measures how often the saliency map of "A small red star is in the top left." is brightest on that star.

It compares several ways to compute the map. A program for models that were trained on the synthetic scenes:

    python -m tests.training.measure_saliency runs/demo/train/*/model
"""

import copy
import itertools
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lotlip_data.synthetic.scenes import PLACES, SPLITS, Scene, render, sample_scene
from lotlip_data.training.models.lotlip import LoTLIP
from lotlip_data.training.saliency import saliency

SCENES = 150


def maps(model: LoTLIP, scene: Scene, text: str) -> Iterator[tuple[str, Tensor]]:
    """Name and map [patches] of each way to compute a map, that of `saliency` first."""
    image = render(scene)
    yield "last layer, heads summed (saliency)", saliency(model, image, text).patches.flatten()
    original = model.towers.image.vit
    shared = itertools.chain(original.parameters(), original.buffers())
    vit = copy.deepcopy(original, {id(tensor): tensor for tensor in shared})
    vit.set_attn_implementation("eager")
    feature = model.embed_texts([text])[0]
    output = vit(pixel_values=model.transform([image]), output_attentions=True)
    similarity = F.normalize(output.last_hidden_state[0, 0], dim=-1) @ feature
    gradients = torch.autograd.grad(similarity, output.attentions)
    patches = (vit.config.image_size // vit.config.patch_size) ** 2
    layers = zip(output.attentions, gradients, strict=True)
    weighted = [(attention * gradient)[0].clamp(min=0).mean(0) for attention, gradient in layers]
    yield "last layer, each head's positive part", weighted[-1][0, -patches:]
    rollout = torch.eye(len(weighted[0]))
    for layer in weighted:
        rollout = rollout + layer @ rollout
    yield "all layers, rolled out", rollout[0, -patches:]
    yield "attention alone", output.attentions[-1][0, :, 0, -patches:].mean(0)
    patch_similarity = F.normalize(output.last_hidden_state[0, -patches:], dim=-1) @ feature
    yield "similarity of patch features and text", patch_similarity - patch_similarity.min()


def main(checkpoints: list[str]) -> None:
    torch.set_num_threads(1)
    scenes = [scene for seed in SPLITS["evaluation"][:SCENES] if len((scene := sample_scene(seed)).objects) > 1]
    for url in checkpoints:
        model, hits, object_count = LoTLIP.load(url), dict[str, int](), 0
        for scene, obj in [(one, obj) for one in scenes for obj in one.objects]:
            object_count += 1
            text = f"A {obj.size} {obj.colour} {obj.shape} is in the {obj.place}."
            for name, found in maps(model, scene, text):
                side = int(len(found) ** 0.5) // 3
                cells = found.detach().view(3, side, 3, side).sum((1, 3)).flatten()
                hits[name] = hits.get(name, 0) + (int(cells.argmax()) == PLACES.index(obj.place))
        print(url, f"({object_count} objects)")
        for name, count in hits.items():
            print(f"  {count / object_count:6.1%}  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
