"""Batches of several texts of an image: prompts of different lengths in one tensor, and one pass of the image encoder.

The code works on transformers' models and is the same for all kinds.
"""

from collections.abc import Iterator, Mapping, Sequence
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


def _select(output: Any, rows: torch.Tensor) -> Any:
    """The rows of an encoder's output: a tensor, or a tuple or mapping of outputs."""
    if isinstance(output, torch.Tensor):
        return output[rows]
    if isinstance(output, Mapping):
        return type(output)(**{name: _select(part, rows) for name, part in output.items()})
    return tuple(_select(part, rows) for part in output)
