"""Zero-shot evaluation of a model: retrieval in both directions, classification by class names, selection of captions.

`measurement.py` measures one set. Results are committed as one JSON object. The result of each finished set is kept
until then, so an interrupted evaluation resumes.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation import bootstrap
from lotlip_data.training.evaluation.groups import GROUPS, figures_by_task
from lotlip_data.training.evaluation.measurement import (
    ClassificationSet,
    ImageSet,
    RetrievalSet,
    SelectionSet,
    classify,
    describe_set,
    retrieve,
    select,
)
from lotlip_data.training.evaluation.models import Embedder
from lotlip_data.training.evaluation.selection import OVERALL

logger = logging.getLogger(__name__)

_DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
_BOOTSTRAP = {"level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED}


def evaluate_zero_shot(
    model: Embedder,
    out: str,
    *,
    retrieval_sets: Sequence[RetrievalSet] = (),
    classification_sets: Sequence[ClassificationSet] = (),
    selection_sets: Sequence[SelectionSet] = (),
    about: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    name: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model and commit the results as a JSON object.

    If `out` exists with the same settings, nothing is computed, and its figures are logged again.

    Args:
        model: See `load_embedder`.
        out: Path or URL of the JSON object.
        retrieval_sets: Sets to measure recall on.
        classification_sets: Sets to measure top-1 accuracy on.
        selection_sets: Sets to measure on how often the right captions score above the wrong ones.
        about: More settings to record.
        allow_partial: Leave out images that cannot be read, with their texts, and list them in "damaged".
        name: Name of the model in tables. It may differ from that of an earlier evaluation of the same model.

    Returns:
        The results, with shares in [0, 1]. "cut" is the share of texts that are longer than the model's context length,
        "cut_tokens" the share of the tokens of all texts that lie beyond it. "intervals" has the 95% interval of each
        share (`bootstrap.py`), "outcomes" the outcome of each query (`outcomes.py`), "protocol" what two results must
        share to be comparable (`protocol.py`).

            {"retrieval": {SET: {"t2i": {"R@1": …, "R@5": …, "R@10": …}, "i2t": {…}, "intervals": {"t2i": {"R@1":
             [LOW, HIGH], …}, …}, "images": N, "texts": M, "cut": …, "cut_tokens": …, "damaged": […]}},
             "classification": {SET: {"top1": …, "intervals": {"top1": [LOW, HIGH]}, "images": N, "classes": C, "cut":
             …, "cut_tokens": …, "damaged": […]}},
             "selection": {SET: {"accuracy": {CATEGORY: …, …}, "queries": {CATEGORY: Q, …}, "intervals": {…}, "images":
             N, "texts": M, "cut": …, "cut_tokens": …, "damaged": […]}},
             "outcomes": {SET: {…}}, "protocol": {SET: {…}}, "bootstrap": {"level": 0.95, "resamples": …, "seed": …},
             "settings": {…}, "made_with": {…}, "seconds": …}

    Raises:
        UserError: If `out` has results with other settings, if an image cannot be read (without `allow_partial`), if no
            image of a set can be read, or if the model's features are not finite.
    """
    settings = {
        "model": model.identity,
        "context_length": model.context_length,
        "allow_partial": allow_partial,
        "sets": [describe_set(image_set) for image_set in (*retrieval_sets, *classification_sets, *selection_sets)],
        **({"name": name} if name else {}),
        **(about or {}),
    }
    if storage.exists(out):
        return _reuse_results(out, settings)
    results: dict[str, Any] = {part: {} for part in (*GROUPS, "outcomes", "protocol")}
    results |= {"bootstrap": _BOOTSTRAP, "settings": settings, "made_with": _versions(), "seconds": 0.0}
    set_results = _SetResults(f"{out}.parts", [model.identity, model.context_length, allow_partial, _BOOTSTRAP])
    measurements: list[tuple[str, ImageSet, Callable[[], dict[str, Any]]]] = [
        *(("retrieval", each, functools.partial(retrieve, model, each, allow_partial)) for each in retrieval_sets),
        *(
            ("classification", each, functools.partial(classify, model, each, allow_partial))
            for each in classification_sets
        ),
        *(("selection", each, functools.partial(select, model, each, allow_partial)) for each in selection_sets),
    ]
    for group, image_set, measure in measurements:
        figures = set_results.read_or_measure(image_set, measure)
        results["seconds"] = round(results["seconds"] + figures.pop("seconds"), 2)
        for part in ("outcomes", "protocol"):
            results[part][image_set.name] = figures.pop(part)
        results[group][image_set.name] = figures
        _log_figures(image_set.name, figures, model.context_length)
    storage.create(out, artifacts.encode_json(results, indent=1))
    storage.remove(set_results.folder)
    return results


@with_config(ConfigDict(extra="allow"))
class _Results(TypedDict):
    """The results of an evaluation, as far as every reader needs them."""

    retrieval: dict[str, dict[str, Any]]
    classification: dict[str, dict[str, Any]]
    selection: NotRequired[dict[str, dict[str, Any]]]
    settings: dict[str, Any]
    outcomes: NotRequired[dict[str, dict[str, Any]]]
    """Results of early releases have none, and no protocol."""
    protocol: NotRequired[dict[str, dict[str, Any]]]


def read_results(url: str) -> dict[str, Any]:
    """Read the results that `evaluate_zero_shot` wrote.

    Raises:
        UserError: If the file cannot be read or does not contain such results.
    """
    try:
        return dict(artifacts.read_json(url, "Name a JSON file that `lotlip-data eval` wrote.", _Results))
    except FileNotFoundError:
        raise UserError(f"{url}: there is no such file; name a JSON file that `lotlip-data eval` wrote") from None
    except OSError as error:
        raise UserError(f"{url}: no results of an evaluation can be read ({error})") from error


def _reuse_results(out: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The results that exist, logged again. Raises UserError if their settings are different."""
    results = read_results(out)
    if _without_name(results["settings"]) != _without_name(settings):
        raise UserError(
            f"{out} contains the evaluation of another model, of other sets or of other images: remove it, or choose "
            "another file"
        )
    logger.info(f"{out}: already evaluated; nothing to do")
    if "outcomes" not in results:
        logger.warning(f"{out}: from an earlier release, without intervals; to have them, remove it and evaluate again")
    if results["settings"].get("name") != settings.get("name"):
        results["settings"]["name"] = settings.get("name")
        storage.replace(out, (json.dumps(results, indent=1) + "\n").encode())
    for name, figures in figures_by_task(results).items():
        _log_figures(name, figures, results["settings"]["context_length"])
    return results


def _without_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the figures: those but the name of the model."""
    return {name: value for name, value in settings.items() if name != "name"}


class _SetResults:
    """The results of single sets, kept in a folder until the evaluation is complete.

    Args:
        folder: Path or URL.
        settings: What the results depend on besides the set.
    """

    def __init__(self, folder: str, settings: list[Any]) -> None:
        self.folder = folder
        self._settings = settings

    def read_or_measure(self, image_set: ImageSet, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept result of the set, or else the result of `measure`; with the "seconds" that it took."""
        description = describe_set(image_set)
        digest = hashlib.sha256(json.dumps([self._settings, description]).encode()).hexdigest()[:16]
        url = storage.join(self.folder, f"{image_set.name}-{digest}.json")
        if not storage.exists(url):
            start = time.monotonic()
            figures = measure()
            storage.create(url, artifacts.encode_json(figures | {"seconds": time.monotonic() - start}))
        return artifacts.read_json(url, "Remove it; the next run evaluates this set again.", artifacts.JsonObject)


def headline(figures: Mapping[str, Any]) -> str:
    """The main figures of a set with their 95% intervals, in one line."""
    if "t2i" in figures:
        ways = ((name, _with_interval(figures, way, "R@1")) for way, name in _DIRECTIONS.items())
        return ", ".join(f"{name} R@1 {figure}" for name, figure in ways)
    if "accuracy" in figures:
        categories = [OVERALL] if OVERALL in figures["accuracy"] else list(figures["accuracy"])
        return ", ".join(
            f"{category} accuracy {_with_interval(figures, 'accuracy', category)}" for category in categories
        )
    return f"top-1 {_with_interval(figures, 'top1')}"


def _with_interval(figures: Mapping[str, Any], *path: str) -> str:
    """A share in percent, with its interval if there is one."""
    share: Any = figures
    interval: Any = figures.get("intervals")
    for name in path:
        share, interval = share[name], interval and interval[name]
    return f"{share:.1%}" + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else "")


def _log_figures(name: str, figures: Mapping[str, Any], context_length: int) -> None:
    """Log the main figures of a set, and the shares of texts and tokens that were cut."""
    classes = f" of {figures['classes']} classes" if "classes" in figures else ""
    logger.info(f"{name}: {headline(figures)}{classes}")
    logger.info(
        f"{name}: {figures['cut']:.1%} of the texts are longer than {context_length} tokens of the model's tokenizer; "
        f"{figures['cut_tokens']:.1%} of all their tokens are cut"
    )


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("lotlip-data", "torch", "transformers")}
