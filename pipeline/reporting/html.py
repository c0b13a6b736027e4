"""The report as one HTML page that needs neither a network nor scripts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lotlip_data.manifests import wording
from lotlip_data.manifests.settings.captioners import by_captioner
from lotlip_data.pipeline.dataset.score_stats import format_score
from lotlip_data.pipeline.reporting import charts
from lotlip_data.pipeline.reporting.escaping import template_value
from lotlip_data.pipeline.reporting.pictures import CaptionedPicture
from lotlip_data.pipeline.reporting.report import SAMPLED_SHARDS
from lotlip_data.pipeline.reporting.score_examples import ScoreExamples
from lotlip_data.pipeline.reporting.score_section import score_section
from lotlip_data.pipeline.reporting.status import WINDOW_SECONDS
from lotlip_data.pipeline.reporting.trainings import LossCurve
from lotlip_data.training.evaluation.groups import GROUPS

TEMPLATES = Path(__file__).parent / "templates"
LOSS_CHARTS = 12
"""Number of trainings whose loss is drawn."""

DUPLICATE_LABELS = {
    "url": "rows that repeat an earlier URL",
    "duplicate": "images identical to an earlier one",
    "near_duplicate": "images that look like another one",
    "evaluation_image": "images that are in an evaluation set",
}

METRIC_LABELS = {
    "t2i": "text to image",
    "i2t": "image to text",
    "cut": "texts truncated",
    "cut_tokens": "tokens truncated",
    "top1": "top-1",
    "text_only": "text-only accuracy",
}
"""Labels of names in result files; any other name is shown unchanged."""


def render_html(
    report: dict[str, Any],
    stats: dict[str, Any] | None = None,
    pictures: Sequence[CaptionedPicture] = (),
    losses: Mapping[str, LossCurve] | None = None,
    examples: ScoreExamples | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """Return the page.

    Captions, reasons and names come from the web and may hold anything: all text is escaped, with invisible characters
    spelled out.

    Args:
        report: The result of `report.build_report`.
        stats: The result of `dataset_stats`, for the statistics of Table 6.
        pictures: Images with their texts, from `pictures.pick_pictures`.
        losses: The loss of each training, from `trainings.read_losses`.
        examples: The best and the worst texts, from `score_examples.find_examples`.
        calibration: What labels say about the scores, from `calibration.calibrate`.
    """
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=template_value
    )
    pages.filters |= {
        "number": "{:,}".format,
        "amount": _format_amount,
        "share": "{:.1%}".format,
        "score": format_score,
        "size": _format_size,
        "plural": lambda count, unit: f"{count:,} {unit}" + "s" * (count != 1),
    }
    plan, captioners = report["plan"], report["captioners"]
    return pages.get_template("report.html.j2").render(
        **{name: value for name, value in report.items() if name not in ("trained", "duplicates", "texts")},
        **_report_charts(report),
        name=report["run"].rstrip("/").rsplit("/", 1)[-1],
        row_unit=_row_unit(report),
        pictures=pictures,
        tiles=list(_tiles(report)),
        sampled_shards=SAMPLED_SHARDS,
        shown_share=charts.SHOWN_SHARE,
        many_series=charts.MANY_SERIES,
        row_counts=list(_row_counts(plan)) if plan else [],
        caption_table=_caption_table(report),
        shared_times=list(_shared_times(report)),
        flag_table=_flag_table(captioners),
        examples=list(_examples(captioners)),
        rejected=[(name, each["rejected"]) for name, each in captioners.items() if each["rejected"]],
        duplicate_rows=[(DUPLICATE_LABELS[name], count) for name, count in report["duplicates"].items()],
        stats=list(_stats_rows(stats)) if stats else None,
        scores=score_section(stats, examples, calibration),
        stats_charts=list(_stats_charts(stats)) if stats else [],
        losses=list(_loss_charts(losses or {})),
        trained=list(report["trained"]),
        model_rows=list(_model_rows(report["trained"])),
    )


def _row_unit(report: dict[str, Any]) -> str:
    """What the rows of the run are: URLs, or images where some of them exist already."""
    download = report["status"]["download"]
    return wording.plural(2, download["unit"] if download else "URL")


def _tiles(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the figures at the top of the page: a number, what it counts, and a remark, which may be empty."""
    status, failures, dataset = report["status"], report["failures"], report["dataset"]
    captioners = report["captioners"]
    images = status["images"]
    share = f"{failures['fetched'] / failures['asked']:.1%} of the {_row_unit(report)}" if failures["asked"] else ""
    yield f"{images:,}", "images downloaded", share
    if captioners:
        texts = sum(each["captioned"] for each in captioners.values())
        fewest = min(captioners, key=lambda name: captioners[name]["captioned"])
        covered = f"{captioners[fewest]['captioned'] / max(1, images):.1%} of the images"
        is_equal = len({each["captioned"] for each in captioners.values()}) == 1
        remark = f"on {covered} each" if is_equal else f"on at least {covered} (fewest: {fewest})"
        makers = by_captioner(captioners, report["texts"])
        by = wording.count(len(makers), "captioner") + (
            f" ({len(captioners)} per image)" if len(makers) < len(captioners) else ""
        )
        yield f"{texts:,}", f"long texts by {by}", remark
    if dataset:
        kept = dataset["samples"] / max(1, dataset["fetched"])
        yield (
            f"{dataset['samples']:,}",
            "samples in the dataset",
            f"{kept:.1%} of its images, {_format_size(dataset['bytes'])}",
        )
    else:
        yield "–", "samples in the dataset", ""
    yield _hours_tile(captioners, report["price"])
    if status["trained"] or status["training"]:
        unfinished = f"{len(status['training'])} more not finished" if status["training"] else ""
        yield f"{len(status['trained']):,}", "trained models", unfinished


def _hours_tile(captioners: dict[str, Any], price: float | None) -> tuple[str, str, str]:
    """Return the tile of the time that captioning took: GPU-hours, or actor-hours where no GPU was used."""
    gpu_hours = sum(each["gpu_hours"] for each in captioners.values())
    hours = gpu_hours or sum(each["hours"] for each in captioners.values())
    is_timed = any(each["timed"] for each in captioners.values())
    cost = (
        f"cost {_format_amount(gpu_hours * price)} at {price} per GPU-hour" if gpu_hours and price is not None else ""
    )
    number = _format_amount(hours) if is_timed else "–"
    return number, f"{'GPU' if gpu_hours else 'actor'}-hours of captioning", cost


def _caption_table(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the figures of the captioners as `head` and `rows`: a column each, or for many captioners a row each."""
    captioners = report["captioners"]
    if not captioners:
        return None
    figures = [(label, [form(each) for each in captioners.values()]) for label, form in _caption_figures(report)]
    if len(captioners) <= charts.MANY_SERIES:
        makers = by_captioner(captioners, report["texts"])
        groups = [(maker or "", len(names)) for maker, names in makers] if any(maker for maker, _ in makers) else []
        return {"groups": groups, "head": list(captioners), "rows": figures}
    columns = [values for _, values in figures]
    rows = [(name, [values[index] for values in columns]) for index, name in enumerate(captioners)]
    return {"groups": [], "head": [label for label, _ in figures], "rows": rows}


def _shared_times(report: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield captioner, number of texts and images per actor-hour of each captioner that makes several texts."""
    captioners = report["captioners"]
    for captioner, names in by_captioner(captioners, report["texts"]):
        rates = [captioners[name]["images_per_hour"] for name in names]
        if captioner and all(rates):
            yield captioner, len(names), round(1 / sum(1 / rate for rate in rates))


def _caption_figures(report: dict[str, Any]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    """Yield each figure of a captioner: its label, and how it is written."""
    captioners = list(report["captioners"].values())
    yield "captioned", lambda each: f"{each['captioned']:,}"
    yield "without a caption", lambda each: f"{each['failed']:,}"
    yield "remaining", lambda each: f"{each['left']:,}"
    yield "tokens", lambda each: _or_dash(each["tokens"], "{:,}".format)
    if any(each["left"] for each in captioners):
        label = f"images/s, last {WINDOW_SECONDS // 60} minutes"
        yield label, lambda each: _format_amount(each["images_per_s"]) if each["left"] else "–"
    yield "actor-hours", lambda each: _format_amount(each["hours"]) if each["timed"] else "–"
    if any(each["gpu_hours"] for each in captioners):
        yield "GPU-hours", lambda each: _format_amount(each["gpu_hours"]) if each["timed"] else "–"
    if any(each["untimed"] for each in captioners):
        yield "images without a recorded time", lambda each: f"{each['untimed']:,}"
    yield "images per actor-hour", lambda each: _or_dash(each["images_per_hour"], lambda rate: f"{round(rate):,}")
    if report["price"] is not None and any(each["cost"] is not None for each in captioners):
        yield "GPU cost", lambda each: _or_dash(each["cost"], _format_amount)


def _or_dash(value: Any, form: Callable[[Any], str]) -> str:
    """Return a value as text, or a dash for an unknown or zero value."""
    return form(value) if value else "–"


def _flag_table(captioners: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that occur as `flags`, and for each captioner its texts and its count of each flag as `rows`."""
    checked = {name: each for name, each in captioners.items() if each["texts"]}
    flags = list(dict.fromkeys(flag for each in checked.values() for flag in each["flags"]))
    rows = [(name, each["texts"], [each["flags"].get(flag, 0) for flag in flags]) for name, each in checked.items()]
    return {"flags": flags, "rows": rows}


def _examples(captioners: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield captioner, flag and text of the examples; fewer per captioner where there are many."""
    limit = 1 if len(captioners) > charts.MANY_SERIES else None
    for name, captioner in captioners.items():
        for flag, examples in captioner["examples"].items():
            yield from ((name, flag, example) for example in examples[:limit])


def _loss_charts(losses: Mapping[str, LossCurve]) -> Iterator[tuple[str, LossCurve, str]]:
    """Yield name, curve and chart of each training; without a chart after the first LOSS_CHARTS."""
    for number, (name, curve) in enumerate(losses.items()):
        yield name, curve, charts.loss_chart(curve.steps, curve.losses) if number < LOSS_CHARTS else ""


def _report_charts(report: dict[str, Any]) -> dict[str, Any]:
    """Return the charts of failures, text lengths and exclusions by their template names; empty without data."""
    captioners = {name: captioner for name, captioner in report["captioners"].items() if captioner["texts"]}
    by_unit = {
        unit: {name: captioner for name, captioner in captioners.items() if captioner["unit"] == unit}
        for unit in ("tokens", "words")
    }
    dataset = report["dataset"] or {}
    dropped_texts = {
        f"{column}: {reason}": count
        for column, reasons in dataset.get("dropped_texts", {}).items()
        for reason, count in reasons.items()
    }

    def bars(counts: dict[str, Any], label: str) -> str:
        return charts.bar_chart(counts, label) if counts else ""

    return {
        "failure_chart": bars(report["failures"]["reasons"], _row_unit(report)),
        "length_charts": [
            charts.length_chart(series, f"{unit} per text") for unit, series in by_unit.items() if series
        ],
        "dropped_chart": bars(dataset.get("dropped", {}), "images left out"),
        "dropped_texts_chart": bars(dropped_texts, "texts left out"),
    }


def _format_amount(value: float) -> str:
    """Return one decimal of numbers from 10 and two significant digits of smaller ones: 1,204.3, 2.5, 0.083."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def _format_size(count: int) -> str:
    """Return a number of bytes in GiB, or in MiB if it is smaller than 1 GiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"


def _row_counts(plan: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield how the rows of the lists become the images to download: all entries before the last add up to it."""
    counts = [("rows in the lists", plan["rows"])]
    counts += [(f"unusable: {reason}", -count) for reason, count in plan["invalid"].items()]
    filtered = [(source, rule, count) for source, rules in plan["filtered"].items() for rule, count in rules.items()]
    counts += [(f"filtered out of {source}: {rule}", -count) for source, rule, count in filtered]
    counts += [(f"not in the sample of {source}", -count) for source, count in plan["not_drawn"].items()]
    counts += [("repeat an earlier URL", -plan["duplicates"])]
    counts += [("not in the manifest's sample", plan["images"] - sum(count for _, count in counts))]
    yield counts[0]
    yield from ((label, count) for label, count in counts[1:] if count)
    yield "images to download", plan["images"]


def _stats_charts(stats: dict[str, Any]) -> Iterator[str]:
    """Yield charts of the dataset: lengths of raw and long texts, and sub-captions per long text."""
    captioners = {name: row for name, row in stats["captioners"].items() if row["texts"]}
    raw = {"raw texts": stats["raw"]} if stats["raw"]["texts"] else {}
    if captioners or raw:
        yield charts.length_chart(captioners | raw, "BERT tokens per text")
    if captioners:
        sub_captions = {name: row["sub_captions_per_text"] for name, row in captioners.items()}
        yield charts.bar_chart(sub_captions, "sub-captions per text", "{:.2f}")


def _stats_rows(stats: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of Table 6 with their labels: of the whole dataset, then of each source if there are several."""
    by_source = stats["sources"] if len(stats["sources"]) > 1 else {}
    for source, part in {"": stats, **by_source}.items():
        prefix = f"{source}: " if source else ""
        for name, row in {"raw texts": part["raw"], **part["captioners"], "all long texts": part}.items():
            yield prefix + name, {"images": part["images"], **row}


def _model_rows(trained: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each metric with its values, one per model."""
    results = [dict(_metrics({group: result.get(group) for group in GROUPS})) for result in trained.values()]
    for label in dict.fromkeys(label for metrics in results for label in metrics):
        yield label, [metrics.get(label, "–") for metrics in results]


def _metrics(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield every number of a nested result, labelled with its path without the first name; fractions in percent."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _metrics(item, (*path, str(METRIC_LABELS.get(name, name))))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield ", ".join(path[1:]), f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
