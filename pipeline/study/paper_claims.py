"""Which table or figure shows which rows, and what the paper says of them that can be held against ours."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from lotlip_data.pipeline.study import experiments, paper_results
from lotlip_data.pipeline.study.experiments import LIT, LIT_LONG, LONGCLIP, LOTLIP, ROWS, Experiment

Paper = Mapping[str, float]
EVERY = ("long", "short", "class")
LEVEL = 0.5
"""Percentage points: the paper prints no spread, and a smaller difference is no direction of its."""


@dataclass(frozen=True)
class Line:
    """A row with its name in a table, what the paper prints of it, and the token limit, where a table has these."""

    label: str
    row: Experiment
    paper: Paper | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Claim:
    """What the paper has of a weighted sum of the rows' `metric`: it is above nought, below it, or level (`sign` 0).

    `printed` is its size in the paper, where that is printed. Where `given` does not show, the claim does not arise.
    """

    text: str
    metric: str
    weights: tuple[tuple[Experiment, float], ...]
    sign: int
    printed: float | None = None
    given: "Claim | None" = None

    @property
    def comparison(self) -> object:
        """Equal for the claims of two tables that are the same one under other names."""
        return frozenset((row, weight * (self.sign or 1)) for row, weight in self.weights), self.metric, self.sign == 0


@dataclass(frozen=True)
class Table:
    """A table or figure. `x` are the positions of a figure's lines, one series after another; `note` is a caveat."""

    name: str
    title: str
    says: str
    """The paper's own finding, in short."""
    lines: Sequence[Line]
    claims: Sequence[Claim]
    metrics: Sequence[str] = EVERY
    x: Sequence[float] = ()
    x_label: str = ""
    note: str = ""
    series: Sequence[str] = field(default=("",))

    @property
    def rows(self) -> Sequence[Experiment]:
        return ROWS[self.name]


def _against(left: Line, right: Line, metrics: Sequence[str] = EVERY) -> list[Claim]:
    """What the paper prints of `left` less what it prints of `right`, which it has level if that is below LEVEL."""
    assert left.paper and right.paper, "both are printed"
    printed = {metric: left.paper[metric] - right.paper[metric] for metric in metrics}
    weights = ((left.row, 1.0), (right.row, -1.0))
    return [
        Claim(f"{left.label} against {right.label}", metric, weights, _sign(size), size)
        for metric, size in printed.items()
    ]


def _sign(printed: float) -> int:
    return 0 if abs(printed) < LEVEL else 1 if printed > 0 else -1


def _said(text: str, sign: int, metrics: Sequence[str], *weights: tuple[Experiment, float]) -> list[Claim]:
    """What the paper says or draws without numbers."""
    return [Claim(text, metric, weights, sign) for metric in metrics]


def _table_2() -> Table:
    lit, long, longclip, lotlip = lines = (
        Line("LiT", LIT, paper_results.LIT),
        Line("LiT + long texts", LIT_LONG, paper_results.LIT_LONG),
        Line("LiT + Long-CLIP", LONGCLIP, paper_results.LONGCLIP),
        Line("LoTLIP", LOTLIP, paper_results.LOTLIP),
    )
    claims = [*_against(long, lit), *_against(longclip, long), *_against(lotlip, long), *_against(lotlip, longclip)]
    return Table(
        "table-2",
        "Table 2: methods",
        "Long texts help everywhere; Long-CLIP adds little on long texts and costs short ones; LoTLIP is best.",
        lines,
        claims,
    )


def _table_3() -> Table:
    lines = [Line(f"m = {count}", experiments.corners(count), paper_results.CORNERS[count]) for count in range(5)]
    lines.append(Line("m = 2, no mask", experiments.UNMASKED, paper_results.UNMASKED))
    pairs = ((1, 0), (2, 0), (2, 1), (4, 2), (2, 5))
    claims = [claim for left, right in pairs for claim in _against(lines[left], lines[right])]
    return Table(
        "table-3",
        "Table 3: corner tokens and their mask",
        "Corner tokens help, little more above two; without their mask most tasks lose.",
        lines,
        claims,
    )


def _table_7() -> Table:
    none, register, corner = lines = (
        Line("neither", LIT_LONG, paper_results.LIT_LONG),
        Line("register tokens", experiments.REGISTER, paper_results.REGISTER),
        Line("corner tokens", LOTLIP, paper_results.LOTLIP),
    )
    claims = [*_against(corner, register), *_against(corner, none), *_against(register, none, ("long",))]
    return Table(
        "table-7",
        "Table 7: register tokens",
        "Register tokens, which have neither mask nor loss, do not help; corner tokens do.",
        lines,
        claims,
    )


def _table_8() -> Table:
    clip, long, lotlip = lines = (
        Line("CLIP", experiments.CLIP, paper_results.CLIP),
        Line("CLIP + long texts", experiments.CLIP_LONG, paper_results.CLIP_LONG),
        Line("LoTLIP, both towers", experiments.SCRATCH, paper_results.SCRATCH),
    )
    return Table(
        "table-8",
        "Table 8: from scratch, at 10×",
        "With both towers trained from fresh weights, long texts help everywhere, and LoTLIP helps further.",
        lines,
        [*_against(long, clip), *_against(lotlip, long)],
        note="LoTLIP leaves the plateau at the start of its training later than the other two, and not with every seed "
        "in time; the [notes](../development/notes/study.md) describe how. Its row says where it is after so many "
        "steps, not where it would end.",
    )


def _table_9() -> Table:
    names = {"instructblip": "InstructBLIP", "llava": "LLaVA", "sharegpt4v": "ShareGPT4V"}
    lines = [Line(label, experiments.captioner(name), paper_results.CAPTIONERS[name]) for name, label in names.items()]
    lines.append(Line("all three", LOTLIP, paper_results.LOTLIP))
    claims = [claim for one in lines[:3] for claim in _against(lines[3], one)]
    claims += [*_against(lines[2], lines[0], ("long",)), *_against(lines[2], lines[1], ("long",))]
    return Table(
        "table-9",
        "Table 9: captioners",
        "The texts of all three are best on average; alone, ShareGPT4V's are best for long texts.",
        lines,
        claims,
    )


def _scales(number: int, metrics: Sequence[str], what: str) -> Table:
    names = {"lit": "LiT", "lotlip": "LoTLIP"}
    lines = {
        (method, scale): Line(
            f"{name}, {scale}×", experiments.scaled(method, scale), paper_results.SCALES[method, scale]
        )
        for scale in experiments.SCALES
        for method, name in names.items()
    }
    claims = [
        one for scale in experiments.SCALES for one in _against(lines["lotlip", scale], lines["lit", scale], metrics)
    ]
    claims += [one for method in names for one in _against(lines[method, 10], lines[method, 1], metrics)]
    return Table(
        f"table-{number}",
        f"Table {number}: the data's scale, {what}",
        "LoTLIP is above LiT at every scale, and both gain from more data (the paper's 3M, 12M and 30M).",
        list(lines.values()),
        claims,
        metrics,
        note="The paper's column here is the mean of eight long-text columns, those of ShareGPT4V-1k among them; in "
        "the other tables it is that of six."
        if "long" in metrics
        else "",
    )


def _curve(method: str, label: str) -> list[Line]:
    return [
        Line(f"{label}, S = {count}", experiments.sub_captions(method, count)) for count in experiments.SUB_CAPTIONS
    ]


def _rise_and_fall(method: str, label: str) -> list[Claim]:
    at = partial(experiments.sub_captions, method)
    return [
        *_said(f"{label}: S = 1 against S = 0", 1, EVERY, (at(1), 1.0), (at(0), -1.0)),
        *_said(f"{label}: S = 3 against S = 1", 1, ("long",), (at(3), 1.0), (at(1), -1.0)),
        *_said(f"{label}: S = 6 against S = 3", 0, ("long",), (at(6), 1.0), (at(3), -1.0)),
        *_said(f"{label}: S = 6 against S = 1", -1, ("short", "class"), (at(6), 1.0), (at(1), -1.0)),
    ]


def _figure_2() -> Table:
    return Table(
        "figure-2",
        "Figure 2: sub-captions, LiT",
        "One sub-caption helps everywhere; more help long texts, up to about three, and cost short texts and classes.",
        _curve("lit_long", "LiT"),
        _rise_and_fall("lit_long", "LiT"),
        x=tuple(experiments.SUB_CAPTIONS),
        x_label="sub-captions S",
        series=("LiT + long texts",),
    )


def _figure_5() -> Table:
    lot, lit = partial(experiments.sub_captions, "lotlip"), partial(experiments.sub_captions, "lit_long")
    slope = ((lot(6), 1.0), (lot(1), -1.0), (lit(6), -1.0), (lit(1), 1.0))
    less = _said("from S = 1 to 6 LoTLIP loses less than LiT", 1, ("short", "class"), *slope)
    losses = _said("LiT: S = 6 against S = 1", -1, ("short", "class"), (lit(6), 1.0), (lit(1), -1.0))
    return Table(
        "figure-5",
        "Figure 5: sub-captions, LiT and LoTLIP",
        "Both gain on long texts and lose on short ones with more sub-captions, LoTLIP more slowly.",
        [*_curve("lit_long", "LiT"), *_curve("lotlip", "LoTLIP")],
        [
            *_rise_and_fall("lotlip", "LoTLIP"),
            *(dataclasses.replace(one, given=loss) for one, loss in zip(less, losses, strict=True)),
        ],
        x=tuple(experiments.SUB_CAPTIONS),
        x_label="sub-captions S",
        series=("LiT + long texts", "LoTLIP"),
    )


def _figure_4() -> Table:
    pairs = ((32, 64, 1), (64, 77, 1), (77, 128, 1), (128, 192, 1), (192, 256, 0))
    claims = [
        one
        for low, high, sign in pairs
        for one in _said(
            f"{high} tokens against {low}",
            sign,
            ("unrelated", "detailed"),
            (experiments.limited(high), 1.0),
            (experiments.limited(low), -1.0),
        )
    ]
    return Table(
        "figure-4",
        "Figure 4: token limit and text FLOPs",
        "Up to 192 tokens more room is better for long texts, and 77 are too few; 192 are best for two of its sets, "
        "256 for the third. FLOPs grow rapidly with the limit.",
        [Line(f"{limit} tokens", experiments.limited(limit), limit=limit) for limit in experiments.LIMITS],
        claims,
        ("unrelated", "detailed", "short", "class"),
        x=experiments.LIMITS,
        x_label="token limit",
        note="Texts of near twins begin alike, so many that are cut early are equal, and equal texts cannot be told "
        "apart whatever a model has learned. Texts of unrelated scenes, as the paper's sets have them, differ from 64 "
        "tokens on. *At most* is the R@1 that is left; what rises no more than that says nothing about the model.",
        series=("LoTLIP, whole texts",),
    )


TABLES = (
    _table_2(),
    _table_3(),
    _table_7(),
    _table_8(),
    _table_9(),
    _scales(10, ("long",), "long texts"),
    _scales(11, ("short", "class"), "short texts and classes"),
    _figure_2(),
    _figure_5(),
    _figure_4(),
)
"""All of them, in the order of the page."""
