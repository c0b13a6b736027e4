"""Measures a model on one set: retrieval, classification, or the selection of captions.

Any object with the attributes of `RetrievalSet`, `ClassificationSet` or `SelectionSet` can be measured on.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from lotlip_data.manifests import wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import progress_bar
from lotlip_data.training.evaluation import metrics
from lotlip_data.training.evaluation.models import Embedder
from lotlip_data.training.evaluation.outcomes import Outcomes, retrieval_outcomes
from lotlip_data.training.evaluation.protocol import COUNTS
from lotlip_data.training.evaluation.selection import Choice, selection_hits, selection_outcomes, text_only_hits

_DIGESTED_ATTRIBUTES = (
    *("texts", "image_of_text", "labels", "class_names", "templates"),
    *("choices", "image_of_choice", "picture_of_image", "boxes"),
)


class ImageSet(Protocol):
    """What all sets have in common.

    A set can also have `paths`, the paths of its images for messages; `stamp`, a text that changes when its images
    change; `queries`, a digest of its images and texts that does not depend on where they are; and `text_form`.
    """

    @property
    def name(self) -> str: ...
    def images(self) -> Iterable[Image.Image | None]:
        """All images in order, generated one at a time; None for an image that cannot be read."""


class RetrievalSet(ImageSet, Protocol):
    """Images and texts: text j belongs to image `image_of_text[j]`.

    A set can also have `distractors`: the number of images, the last ones, that have no text. Texts are compared with
    them too.
    """

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


class SelectionSet(ImageSet, Protocol):
    """Images, which may be regions of pictures, and captions to select from: `choices[q]` is of `image_of_choice[q]`.

    A set can also have `has_overall`, whether all queries together have a meaning (the default), and `has_text_only`,
    whether the two right captions of each query are compared without the image too.
    """

    @property
    def choices(self) -> Sequence[Choice]: ...
    @property
    def image_of_choice(self) -> Sequence[int]: ...
    @property
    def picture_of_image(self) -> Sequence[int]: ...


def retrieve(model: Embedder, pairs: RetrievalSet, allow_partial: bool) -> dict[str, Any]:
    """The figures of a retrieval set. The texts of images that cannot be read are left out."""
    described = 1 + max(pairs.image_of_text, default=-1)  # without images after the last one that has a text
    image_count = described + getattr(pairs, "distractors", 0)
    image_features, readable, damaged = _embed_images(model, pairs, image_count, allow_partial)
    distractors = sum(image >= described for image in readable)
    row_of_image = {image: row for row, image in enumerate(readable)}
    texts, image_rows = [], []
    for text, image in zip(pairs.texts, pairs.image_of_text, strict=True):
        if image in row_of_image:
            texts.append(text)
            image_rows.append(row_of_image[image])
    text_features, cut = _embed_texts(model, pairs, texts)
    hits = metrics.recall_hits(image_features, text_features, image_rows, distractors=distractors)
    outcomes = retrieval_outcomes(hits, image_rows, _queries_digest(pairs, readable))
    figures: dict[str, Any] = metrics.shares(hits)
    figures |= {"images": len(image_features) - distractors, "texts": len(texts), **cut, "damaged": damaged}
    figures |= {"distractors": distractors} if distractors else {}
    protocol = _protocol(model, pairs, figures)
    return figures | {"intervals": outcomes.intervals(), "outcomes": outcomes.encode(), "protocol": protocol}


def classify(model: Embedder, classes: ClassificationSet, allow_partial: bool) -> dict[str, Any]:
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
    outcomes = Outcomes(_queries_digest(classes, readable), {("top1",): hits.numpy()})
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


def select(model: Embedder, questions: SelectionSet, allow_partial: bool) -> dict[str, Any]:
    """The figures of a selection set. The queries of images that cannot be read are left out."""
    image_count = 1 + max(questions.image_of_choice, default=-1)
    image_features, readable, damaged = _embed_images(model, questions, image_count, allow_partial)
    row_of_image = {image: row for row, image in enumerate(readable)}
    kept = [
        (choice, image)
        for choice, image in zip(questions.choices, questions.image_of_choice, strict=True)
        if image in row_of_image
    ]
    captions = dict.fromkeys(caption for choice, _ in kept for caption in (*choice.right, *choice.wrong))
    row_of_caption = {caption: row for row, caption in enumerate(captions)}
    text_features, cut = _embed_texts(model, questions, list(captions))
    right, wrong = (
        [[row_of_caption[caption] for caption in choice_captions] for choice_captions in of_choices]
        for of_choices in ([choice.right for choice, _ in kept], [choice.wrong for choice, _ in kept])
    )
    rows = [row_of_image[image] for _, image in kept]
    hits = {"accuracy": selection_hits(image_features, rows, text_features, right, wrong)}
    if getattr(questions, "has_text_only", False):
        hits["text_only"] = text_only_hits(text_features, right, wrong)
    pictures = [questions.picture_of_image[image] for _, image in kept]
    outcomes = selection_outcomes(
        hits,
        [choice.category for choice, _ in kept],
        pictures,
        _queries_digest(questions, readable),
        has_overall=getattr(questions, "has_overall", True),
    )
    figures: dict[str, Any] = {figure: {} for figure in hits} | {"queries": {}}
    for (figure, category), found in outcomes.hits.items():
        figures[figure][category] = float(found.mean())
        figures["queries"][category] = len(found)
    figures |= {"images": len(set(pictures)), "texts": len(captions), **cut, "damaged": damaged}
    protocol = _protocol(model, questions, figures | {"queries": len(kept)})
    return figures | {"intervals": outcomes.intervals(), "outcomes": outcomes.encode(), "protocol": protocol}


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
        **{name: figures[name] for name in COUNTS if name in figures},
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
    damaged_names = list(dict.fromkeys(paths[index] if paths else f"image {index}" for index in damaged))
    if damaged and (not allow_partial or not readable):
        raise UserError(
            f"{image_set.name}: {wording.count(len(damaged_names), 'image')} cannot be read, for example "
            f"{damaged_names[0]}; download them again"
            + (", or leave them out with --allow-partial" if readable else "")
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


def describe_set(image_set: ImageSet) -> dict[str, Any]:
    """The name of the set and a digest of its texts, its labels and the `stamp` of its images."""
    content = _content(image_set)
    content["stamp"] = [getattr(image_set, "stamp", None)]
    return {"name": image_set.name, "digest": _digest(content)}


def _content(image_set: ImageSet) -> dict[str, list[Any]]:
    """The texts and labels of a set."""
    return {name: list(getattr(image_set, name)) for name in _DIGESTED_ATTRIBUTES if hasattr(image_set, name)}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
