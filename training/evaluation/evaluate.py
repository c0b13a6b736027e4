"""Zero-shot evaluation of a model: retrieval in both directions, and classification by class names.

Any object with the attributes of `RetrievalSet` or `ClassificationSet` can be evaluated on. Results are committed as
one JSON object. The result of each finished set is kept until then, so an interrupted evaluation resumes.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.training.evaluation import bootstrap, metrics
from lotlip_data.training.evaluation.models import Embedder
from lotlip_data.training.evaluation.outcomes import Outcomes, retrieval_outcomes

logger = logging.getLogger(__name__)

_DIGESTED_ATTRIBUTES = ("texts", "image_of_text", "labels", "class_names", "templates")
_DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
_BOOTSTRAP = {"level": bootstrap.LEVEL, "resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED}


class ImageSet(Protocol):
    """What retrieval and classification sets have in common.

    A set can also have `paths`, the paths of its images for messages; `stamp`, a text that changes when its images
    change; `queries`, a digest of its images and texts that does not depend on where they are; and `text_form`.
    """

    @property
    def name(self) -> str: ...
    def images(self) -> Iterable[Image.Image | None]:
        """All images in order, generated one at a time; None for an image that cannot be read."""


class RetrievalSet(ImageSet, Protocol):
    """Images and texts: text j belongs to image `image_of_text[j]`."""

    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def image_of_text(self) -> Sequence[int]: ...


class ClassificationSet(ImageSet, Protocol):
    """Images and classes: image i is of class `labels[i]`. A prompt is a template with the class name for "{}"."""

    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def templates(self) -> Sequence[str]: ...


def evaluate_zero_shot(
    model: Embedder,
    out: str,
    *,
    retrieval_sets: Sequence[RetrievalSet] = (),
    classification_sets: Sequence[ClassificationSet] = (),
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
        "sets": [_describe(image_set) for image_set in (*retrieval_sets, *classification_sets)],
        **({"name": name} if name else {}),
        **(about or {}),
    }
    if storage.exists(out):
        return _reuse_results(out, settings)
    results: dict[str, Any] = {"retrieval": {}, "classification": {}, "outcomes": {}, "protocol": {}}
    results |= {"bootstrap": _BOOTSTRAP, "settings": settings, "made_with": _versions(), "seconds": 0.0}
    set_results = _SetResults(f"{out}.parts", [model.identity, model.context_length, allow_partial, _BOOTSTRAP])
    measurements: list[tuple[str, ImageSet, Callable[[], dict[str, Any]]]] = [
        *(("retrieval", pairs, functools.partial(_retrieve, model, pairs, allow_partial)) for pairs in retrieval_sets),
        *(
            ("classification", classes, functools.partial(_classify, model, classes, allow_partial))
            for classes in classification_sets
        ),
    ]
    for kind, image_set, measure in measurements:
        figures = set_results.read_or_measure(image_set, measure)
        results["seconds"] = round(results["seconds"] + figures.pop("seconds"), 2)
        for part in ("outcomes", "protocol"):
            results[part][image_set.name] = figures.pop(part)
        results[kind][image_set.name] = figures
        _log_figures(image_set.name, figures, model.context_length)
    storage.create(out, artifacts.encode_json(results, indent=1))
    storage.remove(set_results.folder)
    return results


@with_config(ConfigDict(extra="allow"))
class _Results(TypedDict):
    """The results of an evaluation, as far as every reader needs them."""

    retrieval: dict[str, dict[str, Any]]
    classification: dict[str, dict[str, Any]]
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
    for name, figures in (*results["retrieval"].items(), *results["classification"].items()):
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
        description = _describe(image_set)
        digest = hashlib.sha256(json.dumps([self._settings, description]).encode()).hexdigest()[:16]
        url = storage.join(self.folder, f"{image_set.name}-{digest}.json")
        if not storage.exists(url):
            start = time.monotonic()
            figures = measure()
            storage.create(url, artifacts.encode_json(figures | {"seconds": time.monotonic() - start}))
        return artifacts.read_json(url, "Remove it; the next run evaluates this set again.", artifacts.JsonObject)


def _retrieve(model: Embedder, pairs: RetrievalSet, allow_partial: bool) -> dict[str, Any]:
    """The figures of a retrieval set. The texts of images that cannot be read are left out."""
    image_count = 1 + max(pairs.image_of_text, default=-1)  # without images after the last one that has a text
    image_features, readable, damaged = _embed_images(model, pairs, image_count, allow_partial)
    row_of_image = {image: row for row, image in enumerate(readable)}
    texts, image_rows = [], []
    for text, image in zip(pairs.texts, pairs.image_of_text, strict=True):
        if image in row_of_image:
            texts.append(text)
            image_rows.append(row_of_image[image])
    text_features, cut = _embed_texts(model, pairs, texts)
    hits = metrics.recall_hits(image_features, text_features, image_rows)
    outcomes = retrieval_outcomes(hits, image_rows, _queries_digest(pairs, readable))
    figures: dict[str, Any] = metrics.shares(hits)
    figures |= {"images": len(image_features), "texts": len(texts), **cut, "damaged": damaged}
    protocol = _protocol(model, pairs, figures)
    return figures | {"intervals": outcomes.intervals(), "outcomes": outcomes.encode(), "protocol": protocol}


def _classify(model: Embedder, classes: ClassificationSet, allow_partial: bool) -> dict[str, Any]:
    """The figures of a classification set. The feature of a class is the mean over all templates."""
    image_features, readable, damaged = _embed_images(model, classes, len(classes.labels), allow_partial)
    prompts = [template.replace("{}", name) for name in classes.class_names for template in classes.templates]
    prompt_features, cut = _embed_texts(model, classes, prompts)
    class_count = len(classes.class_names)
    class_features = F.normalize(prompt_features.unflatten(0, (class_count, -1)).mean(dim=1), dim=-1)
    # ImageNet has two names that two classes share. Published results take the first of equal scores, so an image of
    # the second class is never right. If these ties counted against the model, images of the first class would not be
    # right either: so only the first class of each name is compared.
    first_class = {name: index for index, name in reversed(list(enumerate(classes.class_names)))}
    compared = sorted(first_class.values())
    row_of_class = {label: row for row, label in enumerate(compared)}
    labels = [row_of_class.get(classes.labels[image], -1) for image in readable]
    hits = metrics.accuracy_hits(image_features, class_features[compared], labels)
    outcomes = Outcomes(_queries_digest(classes, readable), {("top1",): hits.numpy()}, np.zeros(0, np.int64))
    figures: dict[str, Any] = {
        "top1": metrics.share(hits),
        "images": len(image_features),
        "classes": class_count,
        **cut,
    }
    prompts_digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:8]
    protocol = _protocol(model, classes, figures | {"texts": len(prompts), "prompts": prompts_digest})
    figures |= {"damaged": damaged, "intervals": outcomes.intervals()}
    return figures | {"outcomes": outcomes.encode(), "protocol": protocol}


def _queries_digest(image_set: ImageSet, readable: list[int]) -> str:
    """A digest of the queries: the images that can be read, and their texts or classes, wherever they are."""
    identity = getattr(image_set, "queries", None) or _digest(_content(image_set))
    return _digest([identity, readable])


def _protocol(model: Embedder, image_set: ImageSet, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of a set: see `protocol.py`. Models without `preprocessing` state none."""
    return {
        "context_length": model.context_length,
        **getattr(model, "preprocessing", {}),
        "text_form": getattr(image_set, "text_form", "published"),
        **{name: figures[name] for name in ("images", "texts", "prompts") if name in figures},
    }


def _embed_images(
    model: Embedder, image_set: ImageSet, image_count: int, allow_partial: bool
) -> tuple[torch.Tensor, list[int], list[str]]:
    """Compute the features of the images that can be read.

    Args:
        model: The model.
        image_set: The set that has the images.
        image_count: Number of images of the set, for the progress bar.
        allow_partial: Leave out images that cannot be read.

    Returns:
        The features [N, D], the N indices of their images, and the names of the images that cannot be read.

    Raises:
        UserError: If an image cannot be read and `allow_partial` is false, or if no image can be read.
    """
    readable: list[int] = []
    damaged: list[int] = []

    def read_images() -> Iterator[Image.Image]:
        with progress_bar(image_set.name, image_count, "image") as bar:
            for index, image in enumerate(image_set.images()):
                (readable if image is not None else damaged).append(index)
                if image is not None:
                    yield image
                bar.update()

    features = model.embed_images(read_images())
    paths = getattr(image_set, "paths", None)
    damaged_names = [paths[index] if paths else f"image {index}" for index in damaged]
    if damaged and (not allow_partial or not readable):
        raise UserError(
            f"{image_set.name}: {wording.count(len(damaged), 'image')} cannot be read, for example {damaged_names[0]}; "
            "download them again" + (", or leave them out with --allow-partial" if readable else "")
        )
    _check_finite(features, f"{image_set.name}: images")
    return features, readable, damaged_names


def _embed_texts(model: Embedder, image_set: ImageSet, texts: Sequence[str]) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the features of texts. Equal texts are embedded once, so that their scores are equal to the last bit.

    Returns:
        The features [M, D], and the shares "cut" and "cut_tokens".
    """
    row_of_text = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embedded = model.embed_texts(list(row_of_text))
    _check_finite(embedded.features, f"{image_set.name}: texts")
    rows = [row_of_text[text] for text in texts]
    lengths = [embedded.lengths[row] for row in rows]
    tokens_cut = [max(0, length - model.context_length) for length in lengths]
    cut = {
        "cut": sum(map(bool, tokens_cut)) / max(1, len(rows)),
        "cut_tokens": sum(tokens_cut) / max(1, sum(lengths)),
    }
    return embedded.features[rows], cut


def _check_finite(features: torch.Tensor, owner: str) -> None:
    """Raises UserError if a feature [N, D] is NaN or infinite: comparisons with it mean nothing."""
    if broken := int((~features.isfinite()).any(dim=1).sum()):
        raise UserError(
            f"{owner}: the model's features of {broken:,} of {len(features):,} are not finite numbers, so nothing can "
            "be measured; the training has diverged or the weights are damaged: use an earlier checkpoint"
        )


def _describe(image_set: ImageSet) -> dict[str, Any]:
    """The name of the set and a digest of its texts, its labels and the `stamp` of its images."""
    content = _content(image_set)
    content["stamp"] = [getattr(image_set, "stamp", None)]
    return {"name": image_set.name, "digest": _digest(content)}


def _content(image_set: ImageSet) -> dict[str, list[Any]]:
    """The texts and labels of a set."""
    return {name: list(getattr(image_set, name)) for name in _DIGESTED_ATTRIBUTES if hasattr(image_set, name)}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def headline(figures: Mapping[str, Any]) -> str:
    """The main figures of a set with their 95% intervals, in one line."""
    if "t2i" in figures:
        ways = ((name, _with_interval(figures, way, "R@1")) for way, name in _DIRECTIONS.items())
        return ", ".join(f"{name} R@1 {figure}" for name, figure in ways)
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
