"""The table that the demo ends with."""

from typing import Any

from lotlip_data.manifests.layout import Run

_METHODS = {"lit": "LiT", "lit_long": "LiT + long texts", "lotlip": "LoTLIP"}


def summary_lines(figures: dict[str, Any], run: Run) -> list[str]:
    """The figures of demo.json for people: one table, where everything lies, and what to run next."""
    return ["", *_download(figures), *_captions(figures), *_dataset(figures), *_retrieval(figures), "", *_next(run)]


def _rule(title: str) -> str:
    return f"-- {title} ".ljust(86, "-")


def _download(figures: dict[str, Any]) -> list[str]:
    found = figures["download"]
    lines = [_rule("images"), f"{'asked for':<24}{found['asked']:>8}", f"{'fetched':<24}{found['fetched']:>8}"]
    lines.append(f"{'failed':<24}{found['failed']:>8}")
    reasons = sorted(found["failed_by_reason"].items(), key=lambda pair: (-pair[1], pair[0]))
    return lines + [f"  {reason:<22}{count:>8}" for reason, count in reasons]


def _captions(figures: dict[str, Any]) -> list[str]:
    lines = [_rule("captions"), f"{'captioner':<24}{'captions':>8}{'facts: precision':>20}{'recall':>10}"]
    for name, found in figures["captions"].items():
        lines.append(f"{name:<24}{found['count']:>8}{found['facts_precision']:>20.1%}{found['facts_recall']:>10.1%}")
    return lines


def _dataset(figures: dict[str, Any]) -> list[str]:
    found = figures["stats"]
    return [
        _rule("dataset"),
        f"{'images':>10}{'long texts':>14}{'sub-captions a text':>24}{'tokens a text':>18}",
        f"{found['images']:>10}{found['texts']:>14}"
        f"{found['sub_captions_per_text']:>24.2f}{found['tokens_per_text']:>18.2f}",
    ]


def _retrieval(figures: dict[str, Any]) -> list[str]:
    lines = [
        _rule("retrieval on unseen scenes, R@1 in %"),
        f"{'':<24}{'long texts':>24}{'short texts':>26}",
        f"{'method':<24}{'text→image':>13}{'image→text':>12}{'text→image':>14}{'image→text':>12}",
    ]
    for method, found in figures["retrieval"].items():
        long, short = found["long"], found["short"]
        lines.append(
            f"{_METHODS.get(method, method):<24}{long['t2i']:>13.1f}{long['i2t']:>12.1f}"
            f"{short['t2i']:>14.1f}{short['i2t']:>12.1f}"
        )
    return [*lines, "-" * 86, f"took {figures['seconds']} s"]


def _next(run: Run) -> list[str]:
    return [
        "Where it lies:",
        f"  {run.shards}/train-*.tar and .parquet   the dataset: dataset.json describes it",
        f"  {run.captions}/                          every captioner's texts",
        f"  {run.quarantine()}/                        what failed, with its reason",
        f"  {run.train('lotlip')}/                      the trained model",
        f"  {run.url}/demo.json                         the figures above",
        "Next, with real models and your own list (see the README):",
        "  lotlip-data run my-images.yaml runs/mine",
    ]
