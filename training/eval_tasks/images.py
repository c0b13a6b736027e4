"""Images read and decoded ahead by threads."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.training.eval_tasks.files import TaskDataError

THREADS = min(8, os.cpu_count() or 1)
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,  # of broken PNGs
    RuntimeError,  # of broken AVIFs
    TypeError,  # of some TIFFs
    Image.DecompressionBombError,
)
"""What Pillow raises of bytes that are no image."""


def read_image(path: str) -> Image.Image | None:
    """The image as RGB; None where its bytes are no image. Orientation tags are not followed, as in published results.

    Errors of the storage come as they are: that it does not answer must not look as if images were damaged. Raises
    TaskDataError where there is no file (any more).
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TaskDataError(f"{path} is no file that can be read ({error}); fetch it again") from error
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except DAMAGED:
        return None


def ahead(items: Iterable[Any], make: Callable[[Any], Any], threads: int = THREADS) -> Iterator[Any]:
    """`map(make, items)` in order, by threads that are at most two rounds ahead of what is taken."""
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Any]] = deque()
        for item in items:
            under_way.append(pool.submit(make, item))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
