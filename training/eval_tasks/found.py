"""The records of a task whose images are there, and what is amiss with them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lotlip_data.manifests import storage
from lotlip_data.training.eval_tasks.files import Folder, TaskDataError
from lotlip_data.training.eval_tasks.images import ahead
from lotlip_data.training.eval_tasks.task import Record, Task


@dataclass
class Found:
    """Records with the places of their images; where others should be; images without a text; which have another name
    than asked for."""

    places: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    textless: list[str] = field(default_factory=list)
    substituted: list[str] = field(default_factory=list)


def find(task: Task, files: Folder) -> Found:
    """Raises TaskDataError for a blank text, and for an image of several records where each should have its own."""
    found = Found()
    for record in task.read(files):
        place = next((place for place in (*record.places, *record.substitutes) if files.has(place)), None)
        if not all(map(str.strip, record.texts)):
            raise files.broken(record.source, "has a blank text; fetch it again")
        if place is None:
            found.missing.append(record.places[0])
        elif not task.classes and not record.texts:  # nothing can be asked of it
            found.textless.append(place)
        else:
            found.places.append(place)
            found.records.append(record)
            if place not in record.places:
                found.substituted.append(place)
    if task.distinct and len(set(found.places)) < len(found.places):
        raise _repeated(files, found)
    return found


def _repeated(files: Folder, found: Found) -> TaskDataError:
    sources: dict[str, list[str]] = defaultdict(list)
    for place, record in zip(found.places, found.records, strict=True):
        sources[place].append(record.source)
    repeated = {place: named for place, named in sources.items() if len(named) > 1}
    place, named = next(iter(repeated.items()))
    return files.broken(
        place,
        f"is the image of {len(named)} records ({', '.join(sorted(set(named)))}), the first of {len(repeated):,} such "
        "images; fetch the files that name them again",
    )


def stamp(files: Folder, places: Sequence[str]) -> str:
    """A digest of which images these are: their paths in the folder, and the storage's stamps. One listing a folder."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for place in places:
        folder, _, name = place.rpartition("/")
        wanted[folder].add(name)

    def stamps(folder: str) -> dict[str, str]:
        return {n: one for n, one in storage.list_stamps(files.at(folder)).items() if n in wanted[folder]}

    of = dict(zip(wanted, ahead(wanted, stamps), strict=True))
    content = [[place, of[place.rpartition("/")[0]].get(place.rpartition("/")[2])] for place in places]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
