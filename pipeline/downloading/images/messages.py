"""What `isolation.Converter` and its process tell each other. Imports neither OpenCV nor Pillow."""

import os
from dataclasses import dataclass

MAX_CPU_SECONDS = 60
"""CPU time that one image may take. Hostile files exist whose decoding takes hours."""

HEAVY_BYTES = 64 << 20
"""Images whose decoding takes more memory than this are announced with `Cost`."""


@dataclass(frozen=True)
class ConversionSettings:
    """The settings of the manifest's `download` section that a conversion depends on."""

    image_size: int = 512
    quality: int = 95
    max_pixels: int = 100_000_000
    max_decoded_bytes: int = 512 << 20
    full_decode: bool = False


@dataclass(frozen=True)
class Converted:
    """A stored image. Sizes are those of the upright image, in pixels."""

    body: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    is_plain: bool = False
    """Whether the file itself can stand for the stored image: `source.Source.is_plain`."""


@dataclass(frozen=True)
class Done:
    """The conversion of an image. `image` lacks its body: these `size` bytes are in the `SharedFile`."""

    image: Converted
    size: int


@dataclass(frozen=True)
class Ready:
    """The process has started."""


@dataclass(frozen=True)
class Cost:
    """The decoding of the image is about to take this much memory, in bytes."""

    memory: int


@dataclass(frozen=True)
class Failed:
    """The image cannot be stored. `message`: the text of the FetchError."""

    message: str


_KEPT_BYTES = 4 << 20


class SharedFile:
    """A file in memory for the bytes of the image that the processes pass on, before or after its conversion.

    That costs a third of the CPU time of a socket, which passes on an image in pieces.

    Args:
        descriptor: That of an existing file. None: creates one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        owned = os.memfd_create("lotlip-data-image") if descriptor is None else descriptor
        self._file = open(owned, "r+b", buffering=0)  # noqa: SIM115 - `close` closes it

    @property
    def descriptor(self) -> int:
        """The descriptor of the file."""
        return self._file.fileno()

    def put(self, data: bytes) -> None:
        """Replace the content. Raises OSError if memory is short."""
        if os.pwrite(self.descriptor, data, 0) != len(data):
            raise OSError("an image does not fit into memory")

    def take(self, size: int) -> bytes:
        """The content, which has `size` bytes. A large one is removed."""
        data = os.pread(self.descriptor, size, 0)
        if size > _KEPT_BYTES:
            os.ftruncate(self.descriptor, 0)
        return data

    def close(self) -> None:
        """Close the file. Its memory is free once both processes have closed it."""
        self._file.close()
