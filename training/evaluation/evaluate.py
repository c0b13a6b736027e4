"""Zero-shot evaluation of a model: retrieval both ways, and classification by class names.

What is evaluated on comes from outside: any object with the attributes of `RetrievalSet` or `ClassificationSet`.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation import metrics as retrieval
from lotlip_data.training.evaluation.models import Embedder

logger = logging.getLogger(__name__)


class RetrievalSet(Protocol):
    """Images and texts of which text j belongs to image `image_of_text[j]`."""

    @property
    def name(self) -> str: ...
    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def image_of_text(self) -> Sequence[int]: ...
    def images(self) -> Iterable[Image.Image | None]:
        """All images in order, made one at a time; None for one that cannot be read."""


class ClassificationSet(Protocol):
    """Images and the index of each one's class; a prompt is a template with the class name in place of "{}"."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def templates(self) -> Sequence[str]: ...
    def images(self) -> Iterable[Image.Image | None]:
        """All images in order, made one at a time; None for one that cannot be read."""


def evaluate_zero_shot(
    model: Embedder,
    out: str,
    *,
    retrieval_sets: Sequence[RetrievalSet] = (),
    classification_sets: Sequence[ClassificationSet] = (),
    about: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
) -> dict[str, Any]:
    """Evaluate the model and commit the results as the JSON object `out`; returns them.

        {"retrieval": {SET: {"t2i": {"R@1": …, "R@5": …, "R@10": …}, "i2t": {…}, "images": N, "texts": M, "cut": …,
         "cut_tokens": …, "damaged": […]}}, "classification": {SET: {"top1": …, "images": N, "classes": C, "cut": …,
         "cut_tokens": …, "damaged": […]}}, "settings": {…}, "made_with": {…}, "seconds": …}

    Shares are in [0, 1]; "cut" is the share of texts that are longer than the model's context length, "cut_tokens" the
    share of all texts' tokens that lie beyond it. `about` goes into "settings". An image that cannot be read raises
    UserError, or is left out with its texts and listed in "damaged" with `allow_partial`. Each set's result is kept
    beside `out` until all are there, so a killed evaluation goes on. Where `out` is there with the same settings,
    nothing is computed, and the same is said of it; with others, UserError is raised, as of features that are not
    finite.
    """
    settings = {
        "model": model.identity,
        "context_length": model.context_length,
        "allow_partial": allow_partial,
        "sets": [_describe(one) for one in retrieval_sets] + [_describe(one) for one in classification_sets],
        **(about or {}),
    }
    if storage.exists(out):
        held = read_results(out)
        if held["settings"] != settings:
            raise UserError(
                f"{out} holds the evaluation of another model, of other sets or of other images: remove it, or name "
                "another file"
            )
        logger.info(f"{out}: evaluated already; nothing to do")
        for name, found in _sets(held):
            _tell(name, found, model)
        return held
    parts = _Parts(f"{out}.parts", [model.identity, model.context_length, allow_partial])
    results: dict[str, Any] = {"retrieval": {}, "classification": {}, "settings": settings}
    results |= {"made_with": _versions(), "seconds": 0.0}
    for pairs in retrieval_sets:
        compute = functools.partial(_retrieve, model, pairs, allow_partial)
        results["retrieval"][pairs.name] = found = parts.result(_describe(pairs), compute)
        _tell(pairs.name, found, model)
    for classes in classification_sets:
        compute = functools.partial(_classify, model, classes, allow_partial)
        results["classification"][classes.name] = found = parts.result(_describe(classes), compute)
        _tell(classes.name, found, model)
    for _, found in _sets(results):
        results["seconds"] = round(results["seconds"] + found.pop("seconds"), 2)
    storage.create(out, (json.dumps(results, indent=1) + "\n").encode())
    storage.remove(parts.folder)
    return results


def read_results(url: str) -> dict[str, Any]:
    """Results that `evaluate` wrote. Raises UserError for a file that is none."""
    try:
        found = json.loads(storage.read_bytes(url))
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: no results of an evaluation can be read ({error})") from error
    if not isinstance(found, dict) or not {"retrieval", "classification", "settings"} <= set(found):
        raise UserError(f"{url}: not the results of an evaluation; name what `lotlip-data eval` wrote")
    return found


def _sets(results: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was found of each set, by its name."""
    return [*results["retrieval"].items(), *results["classification"].items()]


def _tell(name: str, found: Mapping[str, Any], model: Embedder) -> None:
    """A set's figures, and what was cut for them."""
    if "t2i" in found:
        logger.info(f"{name}: text to image R@1 {found['t2i']['R@1']:.1%}, image to text R@1 {found['i2t']['R@1']:.1%}")
    else:
        logger.info(f"{name}: top-1 {found['top1']:.1%} of {found['classes']} classes")
    logger.info(
        f"{name}: {found['cut']:.1%} of the texts are longer than {model.context_length} tokens; "
        f"{found['cut_tokens']:.1%} of all their tokens are cut"
    )


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("lotlip-data", "torch", "transformers")}


class _Parts:
    """Results of single sets, kept until the evaluation is whole."""

    def __init__(self, folder: str, key: list[Any]) -> None:
        self.folder = folder
        self._key = key

    def result(self, described: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is kept for that set, else what `compute` gives, with the seconds it took."""
        digest = hashlib.sha256(json.dumps([self._key, described]).encode()).hexdigest()[:16]
        url = storage.join(self.folder, f"{described['name']}-{digest}.json")
        if not storage.exists(url):
            began = time.monotonic()
            found = compute()
            storage.create(url, json.dumps(found | {"seconds": time.monotonic() - began}).encode())
        return artifacts.read_json(url, "Remove it; the next run evaluates this set again.")


def _retrieve(model: Embedder, pairs: RetrievalSet, allow_partial: bool) -> dict[str, Any]:
    image, kept, damaged = _embed_images(model, pairs, allow_partial)
    place = {index: row for row, index in enumerate(kept)}
    texts = [
        (text, place[owner]) for text, owner in zip(pairs.texts, pairs.image_of_text, strict=True) if owner in place
    ]
    text, cut = _embed_texts(model, pairs, [one for one, _ in texts])
    found: dict[str, Any] = retrieval.recall(image, text, [owner for _, owner in texts])
    return found | {"images": len(image), "texts": len(text), **cut, "damaged": damaged}


def _classify(model: Embedder, classes: ClassificationSet, allow_partial: bool) -> dict[str, Any]:
    image, kept, damaged = _embed_images(model, classes, allow_partial)
    prompts = [template.replace("{}", name) for name in classes.class_names for template in classes.templates]
    text, cut = _embed_texts(model, classes, prompts)
    centres = F.normalize(text.unflatten(0, (len(classes.class_names), -1)).mean(dim=1), dim=-1)
    # Two of ImageNet's names stand for two classes each. Published results take the first of equal scores, so an image
    # of the second one is never right; counting their ties against the model would take away the first one's too.
    first = {name: index for index, name in reversed(list(enumerate(classes.class_names)))}
    rows = sorted(first.values())
    row_of = {label: row for row, label in enumerate(rows)}
    labels = [row_of.get(classes.labels[index], -1) for index in kept]
    top1 = retrieval.accuracy(image, centres[rows], labels)
    return {"top1": top1, "images": len(image), "classes": len(centres), **cut, "damaged": damaged}


def _embed_images(
    model: Embedder, one: RetrievalSet | ClassificationSet, allow_partial: bool
) -> tuple[torch.Tensor, list[int], list[str]]:
    """Features of the images that can be read, their indices, and the names of the others.

    Raises UserError of an image that cannot be read, or of all.
    """
    kept: list[int] = []
    damaged: list[int] = []

    def readable() -> Iterator[Image.Image]:
        for index, image in enumerate(one.images()):
            (kept if image is not None else damaged).append(index)
            if image is not None:
                yield image

    features = model.embed_images(readable())
    paths = getattr(one, "paths", None)
    names = [paths[index] if paths else f"image {index}" for index in damaged]
    if damaged and (not allow_partial or not kept):
        raise UserError(
            f"{one.name}: {len(damaged):,} images cannot be read, {names[0]} for one; fetch them again"
            + (", or leave them out with --allow-partial" if kept else "")
        )
    return _finite(features, f"{one.name}: images"), kept, names


def _embed_texts(
    model: Embedder, one: RetrievalSet | ClassificationSet, texts: Sequence[str]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Features, and what was cut. Equal texts are embedded once, so that they tie to the last bit."""
    distinct = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    embedded = model.embed_texts(list(distinct))
    rows = [distinct[text] for text in texts]
    lengths = [embedded.lengths[row] for row in rows]
    beyond = [max(0, length - model.context_length) for length in lengths]
    cut = {
        "cut": sum(map(bool, beyond)) / max(1, len(rows)),
        "cut_tokens": sum(beyond) / max(1, sum(lengths)),
    }
    return _finite(embedded.features, f"{one.name}: texts")[rows], cut


def _finite(features: torch.Tensor, what: str) -> torch.Tensor:
    """The features. Raises UserError where one is no number: it would be as near to all as to one."""
    if broken := int((~features.isfinite()).any(dim=1).sum()):
        raise UserError(
            f"{what}: for {broken:,} of {len(features):,} the model gives features that are no numbers, so nothing can "
            "be measured; its training has diverged, or its weights are damaged: take an earlier checkpoint"
        )
    return features


def _describe(one: RetrievalSet | ClassificationSet) -> dict[str, Any]:
    """A set's name, and a digest of its texts, of what belongs to what, and of its images' `stamp` where it has one."""
    fields = ("texts", "image_of_text", "labels", "class_names", "templates")
    content = {name: list(getattr(one, name)) for name in fields if hasattr(one, name)}
    content["stamp"] = [getattr(one, "stamp", None)]
    return {"name": one.name, "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}
