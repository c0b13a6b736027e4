"""Batches of several texts of an image: prompts of different lengths in one tensor, and one pass of the image encoder.

The code works on transformers' models and is the same for all kinds.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lotlip_data.captioners.engines.preprocessing import PreparedText

IMAGE_ENCODERS = ("vision_tower", "vision_model")
"""Attributes by which models of transformers name their image encoder."""


def padded(prompts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack the inputs of several prompts, (1, L) each, into (B, L) by name; a mask hides the padding.

    The language model's inputs are padded on the left, so that generation continues at the last column, with each
    prompt's own last token, so that a penalty on repetitions sees no token that the prompt does not have. Those of a
    Q-Former are padded on the right, since its positions count from the first column.
    """
    if len({prompt["input_ids"].shape for prompt in prompts}) > 1:
        prompts = [{"attention_mask": torch.ones_like(prompt["input_ids"])} | prompt for prompt in prompts]
    return {name: _padded([prompt[name] for prompt in prompts], name) for name in prompts[0]}


def _padded(rows: list[torch.Tensor], name: str) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    on_the_right = name.startswith("qformer_")
    filled = []
    for row in rows:
        missing = width - row.shape[1]
        value = int(row[0, -1]) if name == "input_ids" else 0
        filled.append(torch.nn.functional.pad(row, (0, missing) if on_the_right else (missing, 0), value=value))
    return torch.cat(filled)


def parts_by_image(image_ids: Sequence[str], size: int) -> Iterator[list[int]]:
    """Split a batch of texts into parts with at most `size` images each.

    Args:
        image_ids: For each text, what it has in common with the other texts of its image.
        size: Largest number of images of a part.

    Yields:
        The numbers of the texts of a part, in order.
    """
    part: list[int] = []
    images: set[str] = set()
    for number, image_id in enumerate(image_ids):
        if image_id not in images and len(images) == size:
            yield part
            part, images = [], set()
        images.add(image_id)
        part.append(number)
    if part:
        yield part


def rows_by(keys: Iterable[Hashable]) -> list[list[int]]:
    """The rows of a batch with equal keys, which one call of `generate` makes."""
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return list(rows.values())


def distinct_images(batch: Sequence[PreparedText]) -> tuple[list[torch.Tensor], list[int]]:
    """The pixels of each image of a batch once, and for each text the number of its image among them."""
    numbers: dict[str, int] = {}
    images: list[torch.Tensor] = []
    for prepared in batch:
        if numbers.setdefault(prepared.image_id, len(images)) == len(images):
            images.append(prepared.pixels)
    return images, [numbers[prepared.image_id] for prepared in batch]


class SharedVision:
    """Lets a model's image encoder run once for each image of a batch, however many texts the image gets.

    A model whose image encoder is unknown encodes an image once for each of its texts.

    Attributes:
        rows: Within `images`, for each row that the model is about to get, the number of its image.
    """

    def __init__(self, model: torch.nn.Module):
        modules = (module for name, module in model.named_modules() if name.rpartition(".")[2] in IMAGE_ENCODERS)
        self._images: torch.Tensor | None = None
        self.rows: list[int] = []
        if encoder := next(modules, None):
            self._forward = encoder.forward
            encoder.forward = self._encode

    @contextmanager
    def images(self, pixels: torch.Tensor) -> Iterator["SharedVision"]:
        """Within this, the encoder's output for rows of these images, (N, 3, H, W), is computed once."""
        self._images, self._output = pixels, None
        try:
            yield self
        finally:
            self._images = self._output = None

    def _encode(self, pixel_values: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """The encoder's output for a batch of rows, which show `self._images[self.rows]`."""
        if self._images is None or len(self.rows) != len(pixel_values):
            return self._forward(pixel_values, *arguments, **options)
        if self._output is None:
            self._output = self._forward(self._images, *arguments, **options)
        if self.rows == list(range(len(self._images))):
            return self._output
        rows = torch.tensor(self.rows, device=pixel_values.device)
        return _select(self._output, rows)


class SharedFeatures:
    """Lets a model of any family compute the features of its image inputs once for all the texts of a batch's images.

    It takes the place of the model's `get_image_features`. A model without that method is left as it is.
    """

    def __init__(self, model: torch.nn.Module):
        self._last: tuple[Any, Any] | None = None
        self._active = False
        owners = [module for module in model.modules() if hasattr(type(module), "get_image_features")]
        if owners:
            inner = owners[-1]  # the outer ones call it
            compute: Callable[..., Any] = inner.get_image_features  # type: ignore[assignment]  # torch types attributes
            self._compute = compute

            @functools.wraps(compute)  # `generate` reads the names of its arguments
            def features(*arguments: Any, **options: Any) -> Any:
                return self._features(*arguments, **options)

            inner.get_image_features = features  # type: ignore[assignment]

    @contextmanager
    def of_one_part(self) -> Iterator[None]:
        """Within this, a call with the inputs of the last call returns the last result."""
        self._active = True
        try:
            yield
        finally:
            self._last, self._active = None, False

    def _features(self, *arguments: Any, **options: Any) -> Any:
        inputs = (arguments, options)
        if self._last is not None and _equal(self._last[0], inputs):
            return self._last[1]
        features = self._compute(*arguments, **options)
        if self._active:
            self._last = (inputs, features)
        return features


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left is right or (left.dtype == right.dtype and torch.equal(left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return type(left) is type(right) and bool(left == right)


def _select(output: Any, rows: torch.Tensor) -> Any:
    """The rows of an encoder's output: a tensor, or a tuple or mapping of outputs."""
    if isinstance(output, torch.Tensor):
        return output[rows]
    if isinstance(output, Mapping):
        return type(output)(**{name: _select(part, rows) for name, part in output.items()})
    return tuple(_select(part, rows) for part in output)
