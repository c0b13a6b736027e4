"""How often the map of "A small red star is at the top left." lies on that star, by the ways there are to draw one.

As a program, over trained models of the world: python -m tests.training.measure_saliency runs/demo/train/*/model
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
    """The map of `relevance`, and those that it was chosen from: each of as many patches, by its name."""
    image = render(scene)
    yield "last layer, heads summed (relevance)", saliency(model, image, text).patches.flatten()
    ours = model.towers.image.vit
    vit = copy.deepcopy(ours, {id(one): one for one in itertools.chain(ours.parameters(), ours.buffers())})
    vit.set_attn_implementation("eager")
    feature = model.embed_texts([text])[0]
    seen = vit(pixel_values=model.transform([image]), output_attentions=True)
    similarity = F.normalize(seen.last_hidden_state[0, 0], dim=-1) @ feature
    gradients = torch.autograd.grad(similarity, seen.attentions)
    patches = (vit.config.image_size // vit.config.patch_size) ** 2
    weighted = [(a * g)[0].clamp(min=0).mean(0) for a, g in zip(seen.attentions, gradients, strict=True)]
    yield "last layer, each head's positive part", weighted[-1][0, -patches:]
    rolled = torch.eye(len(weighted[0]))
    for layer in weighted:
        rolled = rolled + layer @ rolled
    yield "all layers, rolled out", rolled[0, -patches:]
    yield "attention alone", seen.attentions[-1][0, :, 0, -patches:].mean(0)
    alike = F.normalize(seen.last_hidden_state[0, -patches:], dim=-1) @ feature
    yield "patch features like the text's", alike - alike.min()


def main(checkpoints: list[str]) -> None:
    torch.set_num_threads(1)
    drawn = [scene for seed in SPLITS["evaluation"][:SCENES] if len((scene := sample_scene(seed)).things) > 1]
    for url in checkpoints:
        model, hits, things = LoTLIP.load(url), dict[str, int](), 0
        for scene, thing in [(one, thing) for one in drawn for thing in one.things]:
            things += 1
            text = f"A {thing.size} {thing.colour} {thing.shape} is in the {thing.place}."
            for name, found in maps(model, scene, text):
                side = int(len(found) ** 0.5) // 3
                cells = found.detach().view(3, side, 3, side).sum((1, 3)).flatten()
                hits[name] = hits.get(name, 0) + (int(cells.argmax()) == PLACES.index(thing.place))
        print(url, f"({things} things)")
        for name, count in hits.items():
            print(f"  {count / things:6.1%}  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
