"""What the study compares, as data: which arms, on which metric, and what the paper says.

The primary comparisons are the study's questions. They were fixed before any final seed ran, and their tests are
corrected for their number. All other comparisons are secondary: they have an interval and no verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lotlip_data.pipeline.study.paper_results import PRINTED
from lotlip_data.pipeline.study.world import METRICS

LEVEL_POINTS = 2.0
"""Differences within this many percentage points count as level, if their whole interval does."""
EQUAL_POINTS = 0.5
"""The paper's differences within this many percentage points state no direction."""


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of the arms' values of a metric."""

    left: str
    """What is compared, as a sentence names it: `left` is better than `right`."""
    right: str
    metric: str
    weights: tuple[tuple[str, float], ...]
    """Names of arms and their weights, which add up to zero."""
    printed: float | None = None
    """The weighted sum of the values that the paper prints; None if it prints none."""
    sign: int = 1
    """The direction that the paper states, or the method's own paper; 0 if none of them states one."""
    primary: bool = False

    @property
    def text(self) -> str:
        return f"{self.left} vs. {self.right}"

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.weights)


@dataclass(frozen=True)
class Topic:
    """A table of the paper, or another question, with the rows and the comparisons that belong to it."""

    name: str
    """Name of its section."""
    question: str
    """What its primary comparisons ask. Topics of one question share a sentence at the head of the page."""
    source: str
    """Where the claim is from."""
    claim: str
    """What the source finds."""
    arms: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    note: str = ""
    """A caveat."""


def _printed(weights: Sequence[tuple[str, float]], metric: str) -> float | None:
    if not all(metric in PRINTED.get(name, {}) for name, _ in weights):
        return None
    return sum(weight * PRINTED[name][metric] for name, weight in weights)


def _compare(
    left: str, right: str, metrics: str, *weights: tuple[str, float], sign: int = 0, primary: str = ""
) -> list[Comparison]:
    """One comparison per metric, all names separated by spaces. `sign` 0: the direction of the printed difference."""
    comparisons = []
    for metric in metrics.split():
        assert metric in METRICS
        printed = _printed(weights, metric)
        states_direction = printed is not None and abs(printed) >= EQUAL_POINTS
        direction = sign or (int(math.copysign(1, printed)) if printed is not None and states_direction else 0)
        comparisons.append(Comparison(left, right, metric, weights, printed, direction, metric in primary.split()))
    return comparisons


def _versus(
    left: str, right: str, metrics: str, arm: str, other: str, sign: int = 0, primary: str = ""
) -> list[Comparison]:
    return _compare(left, right, metrics, (arm, 1.0), (other, -1.0), sign=sign, primary=primary)


_ALL = "long twins short class"
_SINGLE = ("only_instructblip", "only_llava", "only_sharegpt4v")
_LONG, _CORNERS = "Do long texts help?", "Do corner tokens help?"

TOPICS: tuple[Topic, ...] = (
    Topic(
        "Long texts",
        _LONG,
        "Table 2",
        "Long texts help on every metric. With Long-CLIP's loss they help less on short texts.",
        ("lit", "lit_long", "lit_longclip", "lotlip"),
        (
            *_versus("LiT + long texts", "LiT", _ALL, "lit_long", "lit", primary="long short"),
            *_versus("LoTLIP", "LiT", _ALL, "lotlip", "lit"),
            *_versus("LiT + Long-CLIP", "LiT + long texts", _ALL, "lit_longclip", "lit_long"),
        ),
        note="Long-CLIP's loss keeps 8 principal components of features of 128 numbers here: the share of its 32 of "
        "CLIP's 512.",
    ),
    Topic(
        "Corner tokens",
        _CORNERS,
        "Tables 2, 3 and 7",
        "Corner tokens help, with their mask and their loss; more than two add little. Register tokens do not help.",
        ("lit_long", "lotlip_m1", "lotlip", "lotlip_m4", "unmasked", "register"),
        (
            *_versus("LoTLIP", "LiT + long texts", _ALL, "lotlip", "lit_long", primary="long short class"),
            *_versus("LoTLIP", "LiT + Long-CLIP", _ALL, "lotlip", "lit_longclip", primary="long"),
            *_versus("LoTLIP", "LoTLIP without mask", "long", "lotlip", "unmasked", sign=1, primary="long"),
            *_versus("LoTLIP", "LoTLIP without mask", "twins short class", "lotlip", "unmasked"),
            *_versus("LoTLIP", "register tokens", _ALL, "lotlip", "register", primary="long short"),
            *_versus("register tokens", "LiT + long texts", _ALL, "register", "lit_long"),
            *_versus("LoTLIP with m = 2", "with m = 1", _ALL, "lotlip", "lotlip_m1"),
            *_versus("LoTLIP with m = 4", "with m = 2", _ALL, "lotlip_m4", "lotlip"),
        ),
    ),
    Topic(
        "Captioners",
        "Are several captioners better than one?",
        "Table 9",
        "The texts of all three captioners are better than those of a single one on average; ShareGPT4V alone is as "
        "good on long texts.",
        (*_SINGLE, "lotlip"),
        (
            *_compare(
                "LoTLIP with all captioners",
                "with one on average",
                _ALL,
                ("lotlip", 1.0),
                *((name, -1 / 3) for name in _SINGLE),
                primary="long",
            ),
            *_versus("LoTLIP with all captioners", "with ShareGPT4V", _ALL, "lotlip", "only_sharegpt4v"),
            *_versus("LoTLIP with all captioners", "with LLaVA", _ALL, "lotlip", "only_llava"),
            *_versus("LoTLIP with all captioners", "with InstructBLIP", _ALL, "lotlip", "only_instructblip"),
        ),
        note="The captioners' error rates are a choice of the study, so differences between single captioners show "
        "little. Half of the long texts to search are in ShareGPT4V's style, which the models of the two others never "
        "saw in training: part of what all captioners gain is that. The columns *person* show the rest.",
    ),
    Topic(
        "Sub-captions",
        _LONG,
        "Figures 2 and 5",
        "More sub-captions, up to about three, help on long texts and hurt on short ones.",
        ("lit", "lit_long_s1", "lit_long"),
        (
            *_versus("LiT + long texts with S = 1", "LiT", "long", "lit_long_s1", "lit", sign=1),
            *_versus("LiT + long texts with S = 1", "LiT", "twins short class", "lit_long_s1", "lit"),
            *_versus(
                "LiT + long texts with S = 3", "with S = 1", "long", "lit_long", "lit_long_s1", sign=1, primary="long"
            ),
            *_versus("LiT + long texts with S = 3", "with S = 1", "short class", "lit_long", "lit_long_s1", sign=-1),
        ),
        note="The paper shows curves, without numbers. Whether the gain ends at three is not tested: in three pilots "
        "LoTLIP with all sub-captions was far above S = 3.",
    ),
    Topic(
        "From a CLIP",
        "Do later methods help a CLIP?",
        "Long-CLIP, arXiv 2403.15378, and DeBias-CLIP, arXiv 2602.22419",
        "Fine-tuned on long texts, a CLIP gains on long texts. It gains more if its short texts leave out the first "
        "sentence.",
        ("lit", "clip_long", "longclip", "debias"),
        (
            *_versus("Long-CLIP", "the CLIP", "long short", "longclip", "lit", sign=1, primary="long short"),
            *_versus("Long-CLIP", "the CLIP", "twins class", "longclip", "lit"),
            *_versus("DeBias-CLIP", "Long-CLIP", "long short", "debias", "longclip", sign=1, primary="long"),
            *_versus("DeBias-CLIP", "Long-CLIP", "twins class", "debias", "longclip"),
            *_versus("Long-CLIP", "plain fine-tuning", "long short", "longclip", "clip_long", sign=1),
            *_versus("Long-CLIP", "plain fine-tuning", "twins class", "longclip", "clip_long"),
            *_versus("plain fine-tuning", "the CLIP", _ALL, "clip_long", "lit"),
            *_versus("DeBias-CLIP", "the CLIP", "long short", "debias", "lit", sign=1),
            *_versus("DeBias-CLIP", "the CLIP", "twins class", "debias", "lit"),
        ),
        note="The CLIP is the arm LiT, pre-trained on the noisy raw texts alone; its row is the control without "
        "fine-tuning. The three others start from it, train as many steps again on whole long texts, and keep the "
        "image tower locked. *Plain fine-tuning* has LiT's loss on raw and long texts. Long-CLIP and DeBias-CLIP do "
        "not see the raw texts: their short texts are parts of the long ones. A gain over the CLIP is one of further "
        "training on long texts; *Long-CLIP vs. plain fine-tuning* shows what its loss adds. DeBias-CLIP also changes "
        "the weight of the short texts' loss and pads them, and the project knows it from summaries of its paper only.",
    ),
)
"""The sections of the page, in order."""

COMPARISONS: tuple[Comparison, ...] = tuple(comparison for topic in TOPICS for comparison in topic.comparisons)
PRIMARY: tuple[Comparison, ...] = tuple(comparison for comparison in COMPARISONS if comparison.primary)
