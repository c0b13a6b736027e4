"""ImageNet's development kit, which says of what class each validation image is: its archive, or that unpacked.

ILSVRC2012_validation_ground_truth.txt: the number of a class a line, of image 1, 2, …
meta.mat: `synsets`; those without children are the classes, `ILSVRC2012_ID` is the number, `WNID` the WordNet id.
"""

import io
import tarfile
import zlib
from dataclasses import dataclass

from lotlip_data.manifests import storage
from lotlip_data.training.eval_tasks.files import Folder

ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_DAMAGED = (OSError, EOFError, KeyError, ValueError, TypeError, IndexError, NotImplementedError, zlib.error)


@dataclass(frozen=True)
class Truth:
    """WordNet ids: of all classes, in alphabetical order, and of each validation image, in the order of their names."""

    classes: list[str]
    images: list[str]


def read(folder: Folder) -> Truth:
    """Raises TaskDataError where there is no kit, or what is there is not as published."""
    place = folder.first(ARCHIVE, META)
    if place == META:
        meta, truth = (storage.read_bytes(folder.at(folder.first(path))) for path in (META, TRUTH))
        return _truth(folder, place, meta, truth)
    content = io.BytesIO(storage.read_bytes(folder.at(ARCHIVE)))
    try:
        with tarfile.open(fileobj=content) as kit:
            files = [kit.extractfile(name) for name in (META, TRUTH)]
            meta, truth = (file.read() if file else b"" for file in files)
    except (tarfile.TarError, *_DAMAGED) as error:
        raise folder.broken(ARCHIVE, f"cannot be unpacked ({error}); fetch it again") from error
    return _truth(folder, place, meta, truth)


def _truth(folder: Folder, place: str, meta: bytes, truth: bytes) -> Truth:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        named = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if one["num_children"] == 0}
        return Truth(sorted(named.values()), [named[int(number)] for number in truth.split()])
    except (MatReadError, *_DAMAGED) as error:
        raise folder.broken(place, f"does not say the classes of the images ({error!r}); fetch it again") from error
