"""What the study compares, as data: which arms, on which metric, and what the paper says.

The primary comparisons are the study's questions. They were fixed before any final seed ran, and their tests are
corrected for their number. All other comparisons are secondary: they have an interval and no verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lotlip_data.pipeline.study.paper_results import PRINTED
from lotlip_data.pipeline.study.world import METRICS

LEVEL_POINTS = 2.0
"""Differences within this many percentage points count as level, if their whole interval does."""


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of the arms' values of a metric."""

    text: str
    metric: str
    weights: tuple[tuple[str, float], ...]
    """Names of arms and their weights, which add up to zero."""
    printed: float | None = None
    """The weighted sum of the values that the paper prints; None if it prints none."""
    sign: int = 1
    """The direction that the test expects: that of the paper, or of the method's own paper."""
    primary: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.weights)


@dataclass(frozen=True)
class Topic:
    """A table of the paper, or another question, with the rows and the comparisons that belong to it."""

    name: str
    """Name of its section."""
    subject: str
    """Subject of the sentence about it at the head of the page. Topics of one subject share a sentence."""
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
    text: str, metrics: str, *weights: tuple[str, float], sign: int = 0, primary: str = ""
) -> list[Comparison]:
    """One comparison per metric, all names separated by spaces. `sign` 0: the direction of the printed difference."""
    comparisons = []
    for metric in metrics.split():
        assert metric in METRICS
        printed = _printed(weights, metric)
        direction = sign or (-1 if printed is not None and printed < 0 else 1)
        comparisons.append(Comparison(text, metric, weights, printed, direction, metric in primary.split()))
    return comparisons


def _versus(text: str, metrics: str, left: str, right: str, sign: int = 0, primary: str = "") -> list[Comparison]:
    return _compare(text, metrics, (left, 1.0), (right, -1.0), sign=sign, primary=primary)


_ALL = "long twins short class"
_SINGLE = ("only_instructblip", "only_llava", "only_sharegpt4v")

TOPICS: tuple[Topic, ...] = (
    Topic(
        "Long texts",
        "Long texts",
        "Table 2",
        "Long texts help on every metric. With Long-CLIP's loss they help less on short texts.",
        ("lit", "lit_long", "lit_longclip", "lotlip"),
        (
            *_versus("LiT + long texts vs. LiT", _ALL, "lit_long", "lit", primary="long short"),
            *_versus("LoTLIP vs. LiT", _ALL, "lotlip", "lit"),
            *_versus("LiT + Long-CLIP vs. LiT + long texts", _ALL, "lit_longclip", "lit_long"),
        ),
        note="Long-CLIP's loss keeps 8 principal components of features of 128 numbers here: the share of its 32 of "
        "CLIP's 512.",
    ),
    Topic(
        "Corner tokens",
        "Corner tokens",
        "Tables 2, 3 and 7",
        "Corner tokens help, with their mask and their loss; more than two add little. Register tokens do not help.",
        ("lit_long", "lotlip_m1", "lotlip", "lotlip_m4", "unmasked", "register"),
        (
            *_versus("LoTLIP vs. LiT + long texts", _ALL, "lotlip", "lit_long", primary="long short class"),
            *_versus("LoTLIP vs. LiT + Long-CLIP", _ALL, "lotlip", "lit_longclip", primary="long"),
            *_versus("LoTLIP with vs. without mask", _ALL, "lotlip", "unmasked", primary="long"),
            *_versus("LoTLIP vs. register tokens", _ALL, "lotlip", "register", primary="long short"),
            *_versus("register tokens vs. LiT + long texts", _ALL, "register", "lit_long"),
            *_versus("m = 2 vs. m = 1", _ALL, "lotlip", "lotlip_m1"),
            *_versus("m = 4 vs. m = 2", _ALL, "lotlip_m4", "lotlip"),
        ),
    ),
    Topic(
        "Captioners",
        "Captioners",
        "Table 9",
        "The texts of all three captioners are better than those of a single one on average; ShareGPT4V alone is as "
        "good on long texts.",
        (*_SINGLE, "lotlip"),
        (
            *_compare(
                "all captioners vs. the mean of single ones",
                _ALL,
                ("lotlip", 1.0),
                *((name, -1 / 3) for name in _SINGLE),
                primary="long",
            ),
            *_versus("all captioners vs. ShareGPT4V", _ALL, "lotlip", "only_sharegpt4v"),
            *_versus("all captioners vs. LLaVA", _ALL, "lotlip", "only_llava"),
            *_versus("all captioners vs. InstructBLIP", _ALL, "lotlip", "only_instructblip"),
        ),
        note="The captioners' error rates are a choice of the study, so differences between single captioners show "
        "little.",
    ),
    Topic(
        "Sub-captions",
        "Long texts",
        "Figures 2 and 5",
        "More sub-captions, up to about three, help on long texts and hurt on short ones.",
        ("lit", "lit_long_s1", "lit_long"),
        (
            *_versus("LiT + long texts, S = 1 vs. LiT", _ALL, "lit_long_s1", "lit", sign=1),
            *_versus("LiT + long texts, S = 3 vs. S = 1", "long", "lit_long", "lit_long_s1", sign=1, primary="long"),
            *_versus("LiT + long texts, S = 3 vs. S = 1", "short class", "lit_long", "lit_long_s1", sign=-1),
        ),
        note="The paper shows curves, without numbers.",
    ),
    Topic(
        "From a CLIP",
        "From a CLIP",
        "Long-CLIP, arXiv 2403.15378, and DeBias-CLIP, arXiv 2602.22419",
        "Fine-tuned on long texts, a CLIP gains on long texts. It gains more if its short texts leave out the first "
        "sentence.",
        ("lit", "clip_long", "longclip", "debias"),
        (
            *_versus("Long-CLIP vs. the CLIP", "long twins short", "longclip", "lit", sign=1, primary="long short"),
            *_versus("DeBias-CLIP vs. Long-CLIP", "long twins short", "debias", "longclip", sign=1, primary="long"),
            *_versus("Long-CLIP vs. plain fine-tuning", "long twins short", "longclip", "clip_long", sign=1),
            *_versus("DeBias-CLIP vs. the CLIP", "long twins short", "debias", "lit", sign=1),
        ),
        note="The CLIP is the arm LiT, pre-trained on the noisy raw texts alone; its row is the control without "
        "fine-tuning. The three others start from it, train as many steps again on whole long texts, and keep the "
        "image tower locked. *Plain fine-tuning* has LiT's loss on raw and long texts. Long-CLIP and DeBias-CLIP do "
        "not see the raw texts: their short texts are parts of the long ones.",
    ),
)
"""The sections of the page, in order."""

COMPARISONS: tuple[Comparison, ...] = tuple(comparison for topic in TOPICS for comparison in topic.comparisons)
PRIMARY: tuple[Comparison, ...] = tuple(comparison for comparison in COMPARISONS if comparison.primary)
