"""What `isolation.Converter` and its process tell each other. Imports neither OpenCV nor Pillow."""

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


@dataclass(frozen=True)
class Converted:
    """A stored image. Sizes are those of the upright image, in pixels."""

    body: bytes
    width: int
    height: int
    original_width: int
    original_height: int


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
