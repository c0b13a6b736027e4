"""The file with the features of the images of one tar: a .npz archive with one array, whose sha256 is its comment."""

import hashlib
import io
import struct
import zipfile
import zlib

import numpy as np

from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import MISMATCH, DigestMismatch
from lotlip_data.manifests.errors import UserError

ENDING = ".npz"
_MEMBER = "features.npy"
_REMEDY = "Remove it; the next run computes it again."
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, EOFError, RuntimeError, ArithmeticError)
_DAMAGE += (zipfile.BadZipFile, zlib.error, struct.error)
"""What zipfile raises for damaged archives, depending on the place of the damage."""


def file_name(tar_sha256: str) -> str:
    """The name of the file with the features of a tar."""
    return f"{tar_sha256[:32]}{ENDING}"


def encode_features(features_ND: np.ndarray) -> bytes:
    """The file with the features of N images."""
    array, file = io.BytesIO(), io.BytesIO()
    np.save(array, features_ND)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_MEMBER), array.getbuffer())  # ZipInfo: without the time, so equal bytes
        archive.comment = hashlib.sha256(array.getbuffer()).hexdigest().encode()
    return file.getvalue()


def read_features(
    url: str, shape: tuple[int | None, int | None], error_type: type[UserError] = UserError
) -> np.ndarray:
    """Read the features [N, D] of the images of a tar.

    Args:
        url: The file, as a path or URL.
        shape: N and D; None accepts any value.
        error_type: The type of the error for a missing or damaged file.

    Raises:
        UserError: `error_type`, if the file is missing, damaged or of another shape, or has values that are not finite.
    """
    try:
        features_ND = _decode(storage.read_bytes(url))
    except _DAMAGE as error:
        raise error_type(f"{url}: cannot be read ({error}). {_REMEDY}") from error
    actual = features_ND.shape
    if len(actual) != 2 or any(size not in (None, length) for size, length in zip(shape, actual, strict=True)):
        raise error_type(f"{url}: has shape {actual} instead of {shape}. {_REMEDY}")
    if not np.isfinite(features_ND).all():
        raise error_type(f"{url}: has values that are inf or nan. {_REMEDY}")
    return features_ND


def has_digest(url: str) -> bool:
    """Whether the file has a sha256. Those of earlier releases have only the CRC-32 of the archive."""
    with storage.open_read(url) as stream, zipfile.ZipFile(stream) as archive:
        return bool(archive.comment)


def _decode(content: bytes) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        array = archive.read(_MEMBER)  # compares the CRC-32
        if archive.comment and archive.comment != hashlib.sha256(array).hexdigest().encode():
            raise DigestMismatch(MISMATCH)
    features_ND: np.ndarray = np.load(io.BytesIO(array), allow_pickle=False)
    return features_ND
