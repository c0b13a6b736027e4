"""Reads the header of an image: its size, its colours, its orientation, and what its decoding costs in memory."""

import io
import struct
from dataclasses import dataclass, field

from PIL import Image

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images import color, jpeg, webp
from lotlip_data.pipeline.downloading.images.kinds import Kind, identify
from lotlip_data.pipeline.downloading.images.png import Png, PngError, read_png

_PILLOW_FORMATS = {
    "jpeg": ("JPEG", "MPO"),
    "png": ("PNG",),
    "gif": ("GIF",),
    "webp": ("WEBP",),
    "bmp": ("BMP",),
    "tiff": ("TIFF",),
    "avif": ("AVIF",),
    "jpeg2000": ("JPEG2000",),
    "heic": ("HEIF",),
}
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TELEVISION = frozenset({1, 2, 6, 14, 15})

_OPENCV_BYTES = {"jpeg": 6, "png": 7, "webp": 8}
_PILLOW_BYTES = {"jpeg": 5, "png": 5, "gif": 5, "webp": 17, "bmp": 5, "tiff": 9, "avif": 14, "jpeg2000": 25, "heic": 14}
"""Bytes per pixel while an image is decoded: an upper bound for its usual forms, as measured."""

_COEFFICIENT_BYTES, _RGB_BYTES, _CHECK_BYTES = 6, 4, 7
_MANY_PIXELS = 1 << 24
"""Images with more pixels are reduced while they are decoded, so that there is no second copy of all pixels."""


@dataclass
class Source:
    """An image whose header has been read. `image` is Pillow's, whose pixels are not decoded yet."""

    kind: str
    data: bytes
    """The file that decoders get."""
    image: Image.Image
    profiles: list[bytes] = field(default_factory=list)
    """ICC profiles, the one with precedence first."""
    orientation: int = 1
    """The EXIF orientation, 1 to 8, that decoders do not apply."""
    png: Png | None = None
    frame: tuple[int, int, int, int] | None = None
    """Where the first frame of an animation is: left, top, right and bottom. None: everywhere. The rest is blank."""

    def __post_init__(self) -> None:
        self.size = self.image.size  # before the image is reduced

    def replace_data(self, data: bytes) -> None:
        """Decode `data` instead: the same image, repaired."""
        self.data, self.image = data, _open(data, self.kind)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.size[0] * self.size[1]

    @property
    def suits_opencv(self) -> bool:
        """Whether OpenCV decodes the pixels right and in little memory: 8 bits, grey or RGB, opaque, one frame."""
        if self.kind == "webp":
            return self.image.mode == "RGB" and not webp.is_animated(self.data)
        if self.pixels > _MANY_PIXELS:
            return False
        if self.png is not None:
            opaque = self.png.color_type in (0, 2) and not self.png.has_valid_transparency()
            return opaque and self.png.bits == 8 and not self.png.has_default_image
        return self.kind == "jpeg" and self.image.mode in ("RGB", "L")

    @property
    def is_plain(self) -> bool:
        """Whether any decoder reads the file right: a complete upright JPEG, grey or RGB, in sRGB."""
        if self.kind != "jpeg" or self.image.mode not in ("RGB", "L") or self.orientation != 1:
            return False
        return jpeg.has_end(self.data) and color.converter(self.profiles, self.image.mode) is color.UNCHANGED

    def reduction(self, image_size: int) -> int:
        """The whole factor by which each side may shrink before the image is resized to `image_size`."""
        return max(1, min(self.size) // (2 * image_size)) if self.pixels > _MANY_PIXELS else 1

    def decoded_bytes(self, image_size: int) -> int:
        """Memory that the conversion takes, in bytes: an estimate."""
        is_reduced = self.reduction(image_size) > 1
        if self.suits_opencv:
            per_pixel = _OPENCV_BYTES[self.kind]
        elif self.kind == "jpeg" and is_reduced:
            per_pixel = 2  # libjpeg reduces while it decodes
        else:
            per_pixel = _PILLOW_BYTES[self.kind] + (0 if is_reduced else _RGB_BYTES)
        if self.kind == "jpeg":
            per_pixel += _COEFFICIENT_BYTES * jpeg.is_progressive(self.data)
            per_pixel += _CHECK_BYTES * (not jpeg.has_end(self.data))
        return self.pixels * per_pixel


def read_source(data: bytes) -> Source:
    """Read the header of a downloaded body.

    Raises:
        FetchError: It is not an image, of a format that is not supported, truncated, or cannot be read.
        Exception: Whatever a damaged file does to a decoder; see `decoding_error`.
    """
    kind = identify(data)
    if not kind.is_supported:
        raise _unsupported(kind)
    Image.MAX_IMAGE_PIXELS = None  # replaced by `max_pixels`, which is checked before decoding
    if kind.name == "png":
        return _png_source(data)
    if kind.name == "webp":
        return _webp_source(data)
    if kind.name == "heic":
        import pillow_heif

        pillow_heif.register_heif_opener()
    image = _open_jpeg(data) if kind.name == "jpeg" else _open(data, kind.name)
    profiles = [image.info["icc_profile"]] if image.info.get("icc_profile") else _other_profiles(data, kind.name)
    frame = _frame(image) if kind.name == "gif" else None
    return Source(kind.name, data, image, profiles, _orientation(image, kind.name), frame=frame)


def decoding_error(data: bytes, error: Exception) -> FetchError:
    """The failure for an exception that a decoder raised."""
    kind = identify(data).name
    text = str(error).lower()
    if isinstance(error, MemoryError) or "insufficient memory" in text or "outofmemory" in text:
        return FetchError(failures.TOO_MUCH_MEMORY, "raise `download.max_decoded_bytes` to decode such images")
    if "truncated" in text or isinstance(error, webp.TruncatedError) or _lacks_end_of_box(data, kind):
        return FetchError(failures.TRUNCATED)
    detail = str(error) if isinstance(error, PngError) else f"{kind}, {type(error).__name__}"
    return FetchError(failures.UNDECODABLE, detail)


def _unsupported(kind: Kind) -> FetchError:
    if not kind.is_image:
        return FetchError(failures.NOT_AN_IMAGE, kind.name)
    hint = "; install `lotlip-data[heif]` to read it" if kind.name == "heic" else ""
    return FetchError(failures.NOT_SUPPORTED, kind.name + hint)


def _open(data: bytes, kind: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS[kind])


def _open_jpeg(data: bytes) -> Image.Image:
    try:
        return _open(data, "jpeg")
    except Exception:  # noqa: BLE001 - metadata that confuses Pillow does not spoil the pixels
        return _open(jpeg.without_metadata(data), "jpeg")


def _png_source(data: bytes) -> Source:
    chunks = read_png(data)
    if not chunks.pixels:
        raise FetchError(failures.TRUNCATED)
    profiles, orientation = chunks.profiles(), _tiff_orientation(chunks.exif)
    if chunks.has_default_image:
        try:
            image = _open(data, "png")
            image.seek(1)  # the first frame follows the default image
        except (EOFError, SyntaxError):
            chunks.frames = 0  # without a frame, the default image is shown
        else:
            return Source("png", data, image, profiles, orientation, chunks, _frame(image))
    file = chunks.file()
    image = _open(file, "png")
    transparent = image.info.get("transparency")
    if chunks.bits == 16 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # Pillow reads RGB with 8 bits
    elif chunks.bits < 8 and isinstance(transparent, int) and chunks.color_type == 0:
        highest = (1 << chunks.bits) - 1
        image.info["transparency"] = (transparent & highest) * (255 // highest)  # Pillow reads grey with 8 bits
    return Source("png", file, image, profiles, orientation, chunks)


def _frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Where an image that is not decoded yet has pixels; None if they fill it."""
    box = image.tile[0][1] if image.tile else None  # type: ignore[attr-defined]
    return None if box in (None, (0, 0, *image.size)) else box


def _webp_source(data: bytes) -> Source:
    file = webp.repaired(data)
    file = webp.with_alpha(file) if webp.is_animated(file) else file
    image = _open(file, "webp")
    profiles = [image.info["icc_profile"]] if image.info.get("icc_profile") else []
    return Source("webp", file, image, profiles)  # browsers ignore the EXIF orientation of WebP


def _orientation(image: Image.Image, kind: str) -> int:
    if kind in ("tiff", "heic"):  # applied by Pillow and pillow-heif
        return 1
    return _exif_orientation(image.info.get("exif", b""))


def _exif_orientation(content: bytes) -> int:
    """The orientation in an EXIF block as it is in JPEG files, 1 to 8; 1 if there is none or it cannot be read."""
    return _tiff_orientation(content[6:] if content.startswith(b"Exif\0") else content)


def _tiff_orientation(content: bytes) -> int:
    """The orientation in the first directory of an EXIF block. As in browsers, a value of another type is none."""
    order = _BYTE_ORDERS.get(content[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        for entry in range(count):
            *kind, value = struct.unpack_from(f"{order}HHIH", content, start + 2 + 12 * entry)
            if kind == [_ORIENTATION_TAG, _SHORT, 1]:
                return int(value) if value in range(1, 9) else 1
    except struct.error:  # a broken EXIF block does not spoil the pixels
        pass
    return 1


def _other_profiles(data: bytes, kind: str) -> list[bytes]:
    """Profiles that Pillow does not read: those of BMP, AVIF and HEIC files."""
    if kind == "bmp":
        return _bmp_profile(data)
    return _nclx_profile(data) if kind in ("avif", "heic") else []


def _bmp_profile(data: bytes) -> list[bytes]:
    """The profile at the end of a BMP file whose header is of version 5."""
    header = data[14 : 14 + 124]
    if len(header) < 124 or int.from_bytes(header[:4], "little") < 124 or header[56:60] != b"DEBM":
        return []
    start, size = 14 + int.from_bytes(header[112:116], "little"), int.from_bytes(header[116:120], "little")
    return [data[start : start + size]]


def _nclx_profile(data: bytes) -> list[bytes]:
    """The profile of the code points that an AVIF or HEIC file states for its colours.

    Browsers take the curves of television, and unspecified ones, as that of sRGB here.
    """
    at = data.find(b"colrnclx", 0, 1 << 16) + 8
    if at < 8:
        return []
    primaries, transfer = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
    primaries, transfer = 1 if primaries == 2 else primaries, 13 if transfer in _TELEVISION else transfer
    profile = color.coded_profile(primaries, transfer)
    return [] if profile is None else [profile]


def _lacks_end_of_box(data: bytes, kind: str) -> bool:
    """Whether a file of ISO boxes ends inside one of them."""
    at = 0
    while kind in ("avif", "heic", "jpeg2000") and data[4:8] in (b"ftyp", b"jP  ") and at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length < 8:
            return False
        at += length
    return at > len(data)
