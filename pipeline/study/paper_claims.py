"""The paper's tables and figures: their rows, and the paper's claims that the study tests."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from lotlip_data.pipeline.study import experiments, paper_results
from lotlip_data.pipeline.study.experiments import EXPERIMENTS, LIT, LIT_LONG, LONGCLIP, LOTLIP, Experiment

PaperResult = Mapping[str, float]
"""What the paper prints for a row, by metric, in percent."""
COMMON_METRICS = ("long", "short", "class")
LEVEL_POINTS = 0.5
"""The paper prints no spread. A smaller printed difference, in percentage points, counts as level."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table, or a point of a figure."""

    label: str
    experiment: Experiment
    paper: PaperResult | None = None
    token_limit: int | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: the sign of a weighted sum of the experiments' values of a metric."""

    text: str
    metric: str
    weights: tuple[tuple[Experiment, float], ...]
    sign: int
    """1: above zero; -1: below zero; 0: level."""
    printed: float | None = None
    """The weighted sum of the values that the paper prints."""
    requires: "Claim | None" = None
    """The claim does not apply unless this one shows."""

    @property
    def comparison(self) -> object:
        """Equal for claims of two tables that make the same comparison under other labels."""
        return (
            frozenset((each, weight * (self.sign or 1)) for each, weight in self.weights),
            self.metric,
            self.sign == 0,
        )


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper."""

    name: str
    title: str
    finding: str
    """The paper's finding, in short."""
    rows: Sequence[TableRow]
    claims: Sequence[Claim]
    metrics: Sequence[str] = COMMON_METRICS
    x: Sequence[float] = ()
    """Positions of a figure's points, per series. A table has none."""
    x_label: str = ""
    note: str = ""
    """A caveat."""
    series: Sequence[str] = field(default=("",))
    """Labels of a figure's series."""

    @property
    def experiments(self) -> Sequence[Experiment]:
        return EXPERIMENTS[self.name]


def _printed_claims(left: TableRow, right: TableRow, metrics: Sequence[str] = COMMON_METRICS) -> list[Claim]:
    """The claims that follow from what the paper prints for `left` minus what it prints for `right`."""
    assert left.paper and right.paper, "the paper prints both rows"
    printed = {metric: left.paper[metric] - right.paper[metric] for metric in metrics}
    weights = ((left.experiment, 1.0), (right.experiment, -1.0))
    return [
        Claim(f"{left.label} vs. {right.label}", metric, weights, _sign(size), size) for metric, size in printed.items()
    ]


def _sign(printed: float) -> int:
    return 0 if abs(printed) < LEVEL_POINTS else 1 if printed > 0 else -1


def _stated_claims(text: str, sign: int, metrics: Sequence[str], *weights: tuple[Experiment, float]) -> list[Claim]:
    """Claims that the paper states in words or as a curve, without numbers."""
    return [Claim(text, metric, weights, sign) for metric in metrics]


def _table_2() -> Table:
    lit, long, longclip, lotlip = rows = (
        TableRow("LiT", LIT, paper_results.LIT),
        TableRow("LiT + long texts", LIT_LONG, paper_results.LIT_LONG),
        TableRow("LiT + Long-CLIP", LONGCLIP, paper_results.LONGCLIP),
        TableRow("LoTLIP", LOTLIP, paper_results.LOTLIP),
    )
    claims = [
        *_printed_claims(long, lit),
        *_printed_claims(longclip, long),
        *_printed_claims(lotlip, long),
        *_printed_claims(lotlip, longclip),
    ]
    return Table(
        "table-2",
        "Table 2: methods",
        "Long texts help on every metric. Long-CLIP adds little on long texts and hurts on short ones. LoTLIP is best.",
        rows,
        claims,
    )


def _table_3() -> Table:
    rows = [
        TableRow(f"m = {count}", experiments.with_corner_tokens(count), paper_results.CORNERS[count])
        for count in range(5)
    ]
    rows.append(TableRow("m = 2, no mask", experiments.UNMASKED, paper_results.UNMASKED))
    pairs = ((1, 0), (2, 0), (2, 1), (4, 2), (2, 5))
    claims = [claim for left, right in pairs for claim in _printed_claims(rows[left], rows[right])]
    return Table(
        "table-3",
        "Table 3: corner tokens and their mask",
        "Corner tokens help; more than two add little. Without their mask most tasks get worse.",
        rows,
        claims,
    )


def _table_7() -> Table:
    none, register, corner = rows = (
        TableRow("neither", LIT_LONG, paper_results.LIT_LONG),
        TableRow("register tokens", experiments.REGISTER, paper_results.REGISTER),
        TableRow("corner tokens", LOTLIP, paper_results.LOTLIP),
    )
    claims = [
        *_printed_claims(corner, register),
        *_printed_claims(corner, none),
        *_printed_claims(register, none, ("long",)),
    ]
    return Table(
        "table-7",
        "Table 7: register tokens",
        "Register tokens, which have neither a mask nor a loss, do not help. Corner tokens help.",
        rows,
        claims,
    )


def _table_8() -> Table:
    clip, long, lotlip = rows = (
        TableRow("CLIP", experiments.CLIP, paper_results.CLIP),
        TableRow("CLIP + long texts", experiments.CLIP_LONG, paper_results.CLIP_LONG),
        TableRow("LoTLIP, both towers", experiments.SCRATCH, paper_results.SCRATCH),
    )
    return Table(
        "table-8",
        "Table 8: from scratch, at 10×",
        "With both towers trained from scratch, long texts help on every metric, and LoTLIP helps further.",
        rows,
        [*_printed_claims(long, clip), *_printed_claims(lotlip, long)],
        note="LoTLIP leaves the plateau at the start of training later than the other two, and for some seeds not "
        "before training ends; see the [notes](../development/notes/study.md#three-seeds). Its row shows the state "
        "after this number of steps, not after convergence.",
    )


def _table_9() -> Table:
    names = {"instructblip": "InstructBLIP", "llava": "LLaVA", "sharegpt4v": "ShareGPT4V"}
    rows = [
        TableRow(label, experiments.with_captioner(name), paper_results.CAPTIONERS[name])
        for name, label in names.items()
    ]
    rows.append(TableRow("all three", LOTLIP, paper_results.LOTLIP))
    instructblip, llava, sharegpt4v, all_three = rows
    claims = [claim for single in rows[:3] for claim in _printed_claims(all_three, single)]
    claims += [claim for other in (instructblip, llava) for claim in _printed_claims(sharegpt4v, other, ("long",))]
    return Table(
        "table-9",
        "Table 9: captioners",
        "The texts of all three captioners are best on average. Of single ones, ShareGPT4V is best on long texts.",
        rows,
        claims,
    )


def _scale_table(number: int, metrics: Sequence[str], subject: str) -> Table:
    names = {"lit": "LiT", "lotlip": "LoTLIP"}
    rows = {
        (method, scale): TableRow(
            f"{name}, {scale}×", experiments.at_scale(method, scale), paper_results.SCALES[method, scale]
        )
        for scale in experiments.SCALES
        for method, name in names.items()
    }
    claims = [
        claim
        for scale in experiments.SCALES
        for claim in _printed_claims(rows["lotlip", scale], rows["lit", scale], metrics)
    ]
    claims += [claim for method in names for claim in _printed_claims(rows[method, 10], rows[method, 1], metrics)]
    return Table(
        f"table-{number}",
        f"Table {number}: dataset scale, {subject}",
        "LoTLIP is better than LiT at every scale, and both gain from more data (3M, 12M and 30M in the paper).",
        list(rows.values()),
        claims,
        metrics,
        note="Here the paper's column is the mean of eight long-text columns, which include ShareGPT4V-1k. In the "
        "other tables it is the mean of six."
        if "long" in metrics
        else "",
    )


def _curve_rows(method: str, label: str) -> list[TableRow]:
    """The points of a curve over the number of sub-captions."""
    return [
        TableRow(f"{label}, S = {count}", experiments.with_sub_captions(method, count))
        for count in experiments.SUB_CAPTION_COUNTS
    ]


def _curve_claims(method: str, label: str) -> list[Claim]:
    """The claims on a curve over the number of sub-captions."""
    at = partial(experiments.with_sub_captions, method)
    return [
        *_stated_claims(f"{label}: S = 1 vs. S = 0", 1, COMMON_METRICS, (at(1), 1.0), (at(0), -1.0)),
        *_stated_claims(f"{label}: S = 3 vs. S = 1", 1, ("long",), (at(3), 1.0), (at(1), -1.0)),
        *_stated_claims(f"{label}: S = 6 vs. S = 3", 0, ("long",), (at(6), 1.0), (at(3), -1.0)),
        *_stated_claims(f"{label}: S = 6 vs. S = 1", -1, ("short", "class"), (at(6), 1.0), (at(1), -1.0)),
    ]


def _figure_2() -> Table:
    return Table(
        "figure-2",
        "Figure 2: sub-captions, LiT",
        "One sub-caption helps on every metric. More sub-captions, up to about three, help on long texts and hurt on "
        "short texts and classes.",
        _curve_rows("lit_long", "LiT"),
        _curve_claims("lit_long", "LiT"),
        x=tuple(experiments.SUB_CAPTION_COUNTS),
        x_label="sub-captions S",
        series=("LiT + long texts",),
    )


def _figure_5() -> Table:
    lotlip, lit = partial(experiments.with_sub_captions, "lotlip"), partial(experiments.with_sub_captions, "lit_long")
    slope = ((lotlip(6), 1.0), (lotlip(1), -1.0), (lit(6), -1.0), (lit(1), 1.0))
    smaller_losses = _stated_claims("from S = 1 to 6, LoTLIP loses less than LiT", 1, ("short", "class"), *slope)
    losses = _stated_claims("LiT: S = 6 vs. S = 1", -1, ("short", "class"), (lit(6), 1.0), (lit(1), -1.0))
    return Table(
        "figure-5",
        "Figure 5: sub-captions, LiT and LoTLIP",
        "With more sub-captions both gain on long texts and lose on short ones. LoTLIP loses more slowly.",
        [*_curve_rows("lit_long", "LiT"), *_curve_rows("lotlip", "LoTLIP")],
        [
            *_curve_claims("lotlip", "LoTLIP"),
            *(dataclasses.replace(claim, requires=loss) for claim, loss in zip(smaller_losses, losses, strict=True)),
        ],
        x=tuple(experiments.SUB_CAPTION_COUNTS),
        x_label="sub-captions S",
        series=("LiT + long texts", "LoTLIP"),
    )


def _figure_4() -> Table:
    pairs = ((32, 64, 1), (64, 77, 1), (77, 128, 1), (128, 192, 1), (192, 256, 0))
    claims = [
        claim
        for low, high, sign in pairs
        for claim in _stated_claims(
            f"{high} tokens vs. {low}",
            sign,
            ("unrelated", "detailed"),
            (experiments.with_token_limit(high), 1.0),
            (experiments.with_token_limit(low), -1.0),
        )
    ]
    return Table(
        "figure-4",
        "Figure 4: token limit and text FLOPs",
        "Higher limits help on long texts up to 192 tokens, and 77 tokens are too few. 192 are best for two of the "
        "paper's sets, 256 for the third. FLOPs grow rapidly with the limit.",
        [
            TableRow(f"{limit} tokens", experiments.with_token_limit(limit), token_limit=limit)
            for limit in experiments.TOKEN_LIMITS
        ],
        claims,
        ("unrelated", "detailed", "short", "class"),
        x=experiments.TOKEN_LIMITS,
        x_label="token limit",
        note="Texts of near twins start with the same words, so truncation makes many of them equal, and no model can "
        "distinguish equal texts. Texts of unrelated scenes, as in the paper's sets, differ from 64 tokens on. *At "
        "most* is the highest possible R@1. A rise that is no larger than the rise of this ceiling says nothing about "
        "the model.",
        series=("LoTLIP, whole texts",),
    )


TABLES = (
    _table_2(),
    _table_3(),
    _table_7(),
    _table_8(),
    _table_9(),
    _scale_table(10, ("long",), "long texts"),
    _scale_table(11, ("short", "class"), "short texts and classes"),
    _figure_2(),
    _figure_5(),
    _figure_4(),
)
"""All tables and figures, in the order of the page."""
