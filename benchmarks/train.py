"""Samples per second of a LoTLIP training step, compared with the plain form, at the shapes of ViT-B/16 and BERT-base.

    python benchmarks/train.py

`plain` has the form of the authors' code: all texts are padded to 128 tokens, the image tower runs at every step, and
autograd computes the loss. Our two forms pack texts into shared rows and use the chunked loss: `pixels` also runs the
image tower at every step, and `cached` uses its stored features. Towers, weights, images, texts, dtype, SDPA, threads
and optimiser are the same. Forward and backward passes are timed together, the optimiser's step separately. The forms
take turns, so that other load on the machine affects all. A ratio is the median over the rounds of the plain time
divided by ours. The last line of standard output is one JSON object.

Then each form of the loss alone is compared with its plain form, on features of random texts: `loss_sigmoid` is the
time of the plain form divided by ours. `longclip`, `debias` and `multi_positive` are whole steps of these methods,
which train both towers of a CLIP: see `train_methods.py`.

Text lengths follow the paper's means: 18 tokens per raw text, 22 per sub-caption, 3 sub-captions per long text. Dropout
is off by default: with dropout, SDPA on a CPU uses a slower attention, of which the plain form needs more.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_losses import measure_losses, plain_loss, timed
from train_methods import measure_methods

from lotlip_data.training.loss import lotlip_loss
from lotlip_data.training.models.towers import TwoTowers, build
from lotlip_data.training.packing import embed_packed, pack_texts

CONTEXT, CORNERS, PIXELS, PATCH = 128, 2, 224, 16  # tokens, tokens, pixels, pixels
PAPER_A100_DAYS = 133  # 100M samples, 10 epochs (paper, Sec. 5)
A100_BF16 = 312e12  # NVIDIA's figure, FLOP/s
FORMS = ("plain", "pixels", "cached")


@dataclass(frozen=True)
class Batch:
    """Images as pixels and as features; token ids of all raw texts, then of `long_texts` long texts per sample."""

    pixels: Tensor
    features: Tensor
    ids: list[list[int]]
    long_texts: int


def draw_ids(rng: np.random.Generator, batch: int, long_texts: int, vocabulary: int) -> list[list[int]]:
    """Token ids of raw texts of 18 ± 7 tokens, then of long texts of 3 sub-captions of 22 ± 7, separated by [SEP]."""

    def text(parts: int, mean: int) -> list[int]:
        ids = [101, *range(vocabulary, vocabulary + CORNERS)]
        for _ in range(parts):
            ids += [*rng.integers(1000, vocabulary, max(4, round(rng.normal(mean, 7)))).tolist(), 102]
        return ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], 102]

    return [text(1, 18) for _ in range(batch)] + [text(3, 22) for _ in range(batch * long_texts)]


def make_towers(layers: int, dropout: float) -> TwoTowers:
    """Towers with random weights; the image tower is locked."""
    torch.manual_seed(0)
    bert = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "num_hidden_layers": layers}
    vit = {"image_size": PIXELS, "patch_size": PATCH, "num_hidden_layers": layers}
    description = {"image": {"model_type": "vit", **vit}, "text": {"model_type": "bert", **bert}}
    towers = build(description | {"corner_tokens": CORNERS, "mask": True})
    towers.image.requires_grad_(False).eval()
    towers.text.train()
    return towers


def loss_of(form: str, towers: TwoTowers, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, int]:
    """The loss of a form, and the number of text tokens that it computed."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            image = batch.features if form == "cached" else towers.image(batch.pixels)
        if form == "plain":
            padded = torch.tensor([[*row, *[towers.text.pad_id] * (CONTEXT - len(row))] for row in batch.ids])
            features, computed = towers.text(padded), padded.numel()
        else:
            packed = embed_packed(towers.text, pack_texts(towers.text, batch.ids))
            features, computed = packed.features, packed.computed_tokens
    image = F.normalize(image.float(), dim=-1)
    features = F.normalize(features.float(), dim=-1)
    short = features[: len(image), 0]
    long = features[len(image) :].unflatten(0, (len(image), batch.long_texts))
    if form == "plain":
        return plain_loss(image, torch.cat([short[:, None], long.flatten(1, 2)], dim=1), towers.scale), computed
    return lotlip_loss(image, short, long, towers.scale).total, computed


def measure(towers: TwoTowers, batch: Batch, pairs: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Measure all forms.

    Returns:
        Per form `seconds` (forward and backward) and `optimiser` (its step) by round, `computed` tokens and `loss`.
    """
    trained = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.0, fused=True)  # a rate of 0 keeps the weights the same in every round
    results: dict[str, dict[str, Any]] = {form: {"seconds": [], "optimiser": []} for form in FORMS}

    def forward_backward(form: str) -> tuple[float, int]:
        loss, computed = loss_of(form, towers, batch, dtype)
        loss.backward()
        return loss.item(), computed

    for turn in range(pairs + 1):  # the first is a warm-up
        for form in FORMS if turn % 2 else FORMS[::-1]:
            optimiser.zero_grad(set_to_none=True)
            seconds, (results[form]["loss"], results[form]["computed"]) = timed(
                lambda form=form: forward_backward(form)
            )
            step_seconds, _ = timed(optimiser.step)
            if turn:
                results[form]["seconds"].append(seconds)
                results[form]["optimiser"].append(step_seconds)
    return results


def layer_flops(layers: int, lengths: Sequence[int], width: int = 768) -> float:
    """FLOPs of a forward pass over sequences: per token 24 d² for the matrices and 4 L d for the attention."""
    return layers * sum(length * (24 * width**2 + 4 * length * width) for length in lengths)


def flops_per_sample(form: str, layers: int, batch: Batch) -> float:
    """FLOPs per sample for real tokens, or for CONTEXT tokens per text in the plain form.

    A backward pass counts as twice its forward pass.
    """
    samples = len(batch.pixels)
    lengths = [CONTEXT] * len(batch.ids) if form == "plain" else [len(row) for row in batch.ids]
    patches = (PIXELS // PATCH) ** 2
    image = layer_flops(layers, [patches + 1]) + 2 * patches * 3 * PATCH**2 * 768
    return 3 * layer_flops(layers, lengths) / samples + (0.0 if form == "cached" else image)


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of this machine for the tower's largest matrix product, the best of 5."""
    product = nn.Linear(768, 3072, bias=False).to(dtype)
    rows = torch.randn(4096, 768, dtype=dtype)
    with torch.no_grad():
        product(rows)
        return 2 * 4096 * 768 * 3072 / min(timed(lambda: product(rows))[0] for _ in range(5))


def report(name: str, results: dict[str, dict[str, Any]], batch: Batch, layers: int, rate: float) -> dict[str, Any]:
    """Print one line per form, and return the ratios.

    Args:
        name: The suffix of the forms' names: the number of long texts.
        results: The results of `measure`.
        batch: The measured batch.
        layers: Number of layers of each tower.
        rate: FLOP/s of matrix products on this machine.
    """
    samples, real = len(batch.pixels), sum(map(len, batch.ids))
    plain, ratios = results["plain"], {}
    for form in FORMS:
        result, flops = results[form], flops_per_sample(form, layers, batch)
        seconds = statistics.median(result["seconds"])
        line = f"{form}_{name}: {samples / seconds:.2f} samples/s, tokens computed {result['computed']} of {real} real "
        line += f"({result['computed'] / real:.3f}), {flops / 1e9:.0f} GFLOP per sample, "
        line += f"{flops * samples / seconds / rate:.0%} of the matrix products' rate, loss {result['loss']:.4f}"
        if form != "plain":
            ratio = statistics.median(a / b for a, b in zip(plain["seconds"], result["seconds"], strict=True))
            counted = flops_per_sample("plain", layers, batch) / flops
            whole = [
                (a + b) / (c + d)
                for a, b, c, d in zip(
                    plain["seconds"], plain["optimiser"], result["seconds"], result["optimiser"], strict=True
                )
            ]
            line += f"; {ratio:.2f} times plain (FLOPs allow {counted:.2f}; {ratio / counted:.0%})"
            line += f", {statistics.median(whole):.2f} with the optimiser's step"
            ratios[f"{form}_{name}"] = round(ratio, 3)
        print(line, flush=True)
    return ratios


def extrapolate(ratios: dict[str, float], flops: float) -> None:
    """Print the A100-days of the paper's training, given the ratios and the plain form's FLOPs per sample."""
    used = 1e9 * flops / (PAPER_A100_DAYS * 86400 * A100_BF16)
    print(f"EXTRAPOLATION to 100M samples × 10 epochs, from the paper's {PAPER_A100_DAYS} A100-days:")
    print(
        f"  plain: 1e9 samples × {flops / 1e9:.0f} GFLOP / (133 × 86400 s × 312 TFLOP/s) = {used:.1%} of an A100's peak"
    )
    for name, ratio in ratios.items():
        if name.endswith("_3"):
            print(f"  {name}: {PAPER_A100_DAYS} / {ratio:.2f} = {PAPER_A100_DAYS / ratio:.0f} A100-days, at that share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="samples per batch (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument(
        "--layers", type=int, default=12, help="layers per tower; fewer to try the script (default: 12)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: %(default)s)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of autocast")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout probability (default: %(default)s)")
    parser.add_argument("--loss-batch", type=int, default=4096, help="samples of the losses alone (default: 4096)")
    parser.add_argument("--smoke", action="store_true", help="try the script: one layer per tower, batches of 4")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(batch=4, pairs=1, layers=1, loss_batch=64)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    towers, rng = make_towers(options.layers, options.dropout), np.random.default_rng(0)
    pixels = torch.randn(options.batch, 3, PIXELS, PIXELS)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        features = towers.image(pixels).float()
    rate = matrix_rate(dtype)
    print(f"{options}; matrix products: {rate / 1e9:.0f} GFLOP/s", flush=True)
    ratios: dict[str, float] = {}
    for long_texts in (3, 1):
        ids = draw_ids(rng, options.batch, long_texts, towers.text.vocab_size)
        batch = Batch(pixels, features, ids, long_texts)
        results = measure(towers, batch, options.pairs, dtype)
        ratios |= report(str(long_texts), results, batch, options.layers, rate)
        if long_texts == 3:
            plain_flops = flops_per_sample("plain", options.layers, batch)
    extrapolate(ratios, plain_flops)
    ratios |= measure_losses(options.loss_batch, 4, options.pairs)
    ratios |= measure_methods(options.layers, options.batch, options.pairs, dtype)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
