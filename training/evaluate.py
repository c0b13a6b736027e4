"""Zero-shot evaluation of a trained model: retrieval both ways, and classification by class names.

What is evaluated on comes from outside: any object with the attributes of `RetrievalSet` or `ClassificationSet`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training import checkpoint, retrieval
from lotlip_data.training.checkpoint import LoTLIP

Say = Callable[[str], None]


class RetrievalSet(Protocol):
    """Images and texts of which text j belongs to image `image_of_text[j]`."""

    @property
    def name(self) -> str: ...
    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def image_of_text(self) -> Sequence[int]: ...
    def images(self) -> Iterable[Image.Image]:
        """All images in order, made one at a time."""


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
    def images(self) -> Iterable[Image.Image]:
        """All images in order, made one at a time."""


def evaluate(
    model: str,
    out: str,
    *,
    retrieval_sets: Sequence[RetrievalSet] = (),
    classification_sets: Sequence[ClassificationSet] = (),
    say: Say = print,
) -> dict[str, Any]:
    """Evaluate the model folder `model` and commit the results as the JSON object `out`; returns them.

        {"retrieval": {SET: {"t2i": {"R@1": …, "R@5": …, "R@10": …}, "i2t": {…}, "images": N, "texts": M, "cut": …}},
         "classification": {SET: {"top1": …, "images": N, "classes": C, "cut": …}}, "settings": {…}, "seconds": …}

    Shares are in [0, 1]; "cut" is the share of texts that are longer than the model's context length. Where `out` is
    there for the same model and sets, nothing is computed. Raises UserError where it is of another model or other sets.
    """
    settings = {
        "model": _identity(model),
        "sets": [_describe(one) for one in retrieval_sets] + [_describe(one) for one in classification_sets],
    }
    if storage.exists(out):
        held: dict[str, Any] = json.loads(storage.read_bytes(out))
        if held["settings"] != settings:
            raise UserError(f"{out} holds the evaluation of another model or of other sets: remove it, or name another")
        say(f"{out}: evaluated already; nothing to do")
        return held
    began = time.monotonic()
    loaded = LoTLIP.load(model)
    results: dict[str, Any] = {"retrieval": {}, "classification": {}, "settings": settings}
    for pairs in retrieval_sets:
        results["retrieval"][pairs.name] = found = _retrieve(loaded, pairs)
        say(f"{pairs.name}: text to image R@1 {found['t2i']['R@1']:.1%}, image to text R@1 {found['i2t']['R@1']:.1%}")
    for classes in classification_sets:
        results["classification"][classes.name] = found = _classify(loaded, classes)
        say(f"{classes.name}: top-1 {found['top1']:.1%} of {found['classes']} classes")
    results["seconds"] = round(time.monotonic() - began, 2)
    storage.create(out, (json.dumps(results, indent=1) + "\n").encode())
    return results


def _retrieve(model: LoTLIP, pairs: RetrievalSet) -> dict[str, Any]:
    image = model.embed_images(pairs.images())
    text, cut = _embed_texts(model, pairs.texts)
    found: dict[str, Any] = retrieval.recall(image, text, pairs.image_of_text)
    return found | {"images": len(image), "texts": len(text), "cut": cut}


def _classify(model: LoTLIP, classes: ClassificationSet) -> dict[str, Any]:
    prompts = [template.replace("{}", name) for name in classes.class_names for template in classes.templates]
    text, cut = _embed_texts(model, prompts)
    centres = F.normalize(text.unflatten(0, (len(classes.class_names), -1)).mean(dim=1), dim=-1)
    image = model.embed_images(classes.images())
    top1 = retrieval.accuracy(image, centres, classes.labels)
    return {"top1": top1, "images": len(image), "classes": len(centres), "cut": cut}


def _embed_texts(model: LoTLIP, texts: Sequence[str]) -> tuple[torch.Tensor, float]:
    """Features, and the share of texts cut. Equal texts are embedded once, so that they tie to the last bit."""
    distinct = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    encoded = model.tokenizer.encode(list(distinct))
    rows = [distinct[text] for text in texts]
    cut = sum(encoded.cut[row] for row in rows) / max(1, len(rows))
    return model.embed_tokens(encoded)[rows], cut


def _identity(model: str) -> str:
    """The sha256 of the model folder's configuration and weights. Raises CheckpointError where there is no model."""
    digest = hashlib.sha256()
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        try:
            digest.update(storage.read_bytes(storage.join(storage.normalise(model), name)))
        except (FileNotFoundError, NotADirectoryError):
            raise checkpoint.CheckpointError(
                f"{model}: there is no {name}, so no trained model; name the folder `model` of a training"
            ) from None
    return digest.hexdigest()


def _describe(one: RetrievalSet | ClassificationSet) -> dict[str, Any]:
    """A set's name, and a digest of its texts and of what belongs to what."""
    fields = ("texts", "image_of_text", "labels", "class_names", "templates")
    content = {name: list(getattr(one, name)) for name in fields if hasattr(one, name)}
    return {"name": one.name, "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}
