"""Images of every kind that a container can hold, and small containers of them."""

import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

PIXELS = 40


def picture(seed: int, mode: str = "RGB", pixels: int = PIXELS) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((pixels, pixels + 8), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The file of a picture."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(seed: int, **options: object) -> bytes:
    """A plain JPEG."""
    return encoded(picture(seed), quality=95, **options)


def oriented_jpeg(seed: int) -> bytes:
    """A JPEG that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(seed, exif=exif.tobytes())


def lab_jpeg(seed: int) -> bytes:
    """A JPEG with a colour profile that changes its colours."""
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return jpeg(seed, icc_profile=swapped.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ"))


def bomb() -> bytes:
    """A PNG whose header claims 60,000 × 60,000 pixels."""
    small = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    small[16:24] = (60_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    return bytes(small)


def write_tar(path: Path, members: Mapping[str, bytes | str | dict[str, object]]) -> Path:
    """Write a tar with these members, whose content is bytes, a text, or an object that becomes JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = json.dumps(content) if isinstance(content, dict) else content
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
