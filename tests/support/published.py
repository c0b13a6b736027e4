"""The published checkpoints of tests/goldens/published: their configurations and the shapes of their tensors."""

import json
from typing import Any

from tests.support.paths import GOLDENS


def published(name: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the golden and the shape of each tensor by name; a name with {} stands for a number or list of layers."""
    golden = json.loads((GOLDENS / "published" / f"{name}.json").read_text())
    shapes: dict[str, tuple[int, ...]] = {}
    for pattern, shape, *layers in golden["tensors"]:
        numbers = range(layers[0]) if layers and isinstance(layers[0], int) else layers[0] if layers else [None]
        shapes |= {pattern.format(number): tuple(shape) for number in numbers}
    return golden, shapes
