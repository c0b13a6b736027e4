"""URL lists of the synthetic scenes, with the faults of real lists."""

import csv
import json
import pathlib
import random
from collections.abc import Mapping, Sequence

import yaml

from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.scenes import sample_scene

FAULTS = ("dead", "gone", "error", "html", "truncated", "short", "empty", "loop", "slow", "robots", "redirect")
"""Faulty paths of the scene server. A redirect still leads to an image."""

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}


def url_rows(base_url: str, scenes: Sequence[int], faults: Mapping[str, int]) -> list[tuple[str, str]]:
    """The (url, raw text) pairs of a list in a shuffled order, which is the same in every call.

    Args:
        base_url: URL of the scene server, without a slash at the end.
        scenes: Seeds of the scenes that the list offers.
        faults: Number of faulty URLs per kind, one of FAULTS. Their seeds follow the last scene's.

    Raises:
        ValueError: A kind of fault is unknown.
    """
    links = [(f"{base_url}/scene/{seed}.jpg", seed) for seed in scenes]
    seed = max(scenes, default=-1) + 1
    for kind, count in faults.items():
        if kind not in FAULTS:
            raise ValueError(f"no fault {kind!r}: choose among {', '.join(FAULTS)}")
        links += [(f"{base_url}/{kind}/{seed + offset}.jpg", seed + offset) for offset in range(count)]
        seed += count
    random.Random(0).shuffle(links)
    return [(url, raw_text(sample_scene(seed))) for url, seed in links]


def write_list(path: str, base_url: str, scenes: Sequence[int], faults: Mapping[str, int] | None = None) -> int:
    """Write the list of `url_rows` into the local file `path` and return its number of rows.

    The suffix of `path` selects the format. The columns are `caption` and `url`. A TSV has no header, like CC3M's.

    Raises:
        ValueError: The suffix is not .csv, .tsv, .jsonl or .parquet, or a kind of fault is unknown.
    """
    rows = url_rows(base_url, scenes, faults or {})
    format = _FORMATS.get(pathlib.Path(path).suffix)
    if format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        urls, texts = ([row[column] for row in rows] for column in (0, 1))
        pq.write_table(pa.table({"caption": texts, "url": urls}), path)
    elif format is None:
        raise ValueError(f"{path}: the suffix of a list must be one of {', '.join(_FORMATS)}")
    else:
        with open(path, "w", encoding="utf-8", newline="") as stream:
            if format == "csv":
                csv.writer(stream).writerows([("caption", "url"), *((text, url) for url, text in rows)])
            elif format == "tsv":
                stream.writelines(f"{text}\t{url}\n" for url, text in rows)
            else:
                stream.writelines(json.dumps({"caption": text, "url": url}) + "\n" for url, text in rows)
    return len(rows)


def write_manifest(path: str, list_path: str, **settings: object) -> None:
    """Write a YAML manifest of one list of `write_list`. `settings` add to the manifest's fields or replace them."""
    # Existing runs have the name "world" in their datasets, so it stays.
    source: dict[str, object] = {"name": "world", "files": [list_path]}
    if list_path.endswith(".tsv"):
        source["columns"] = ["caption", "url"]
    manifest = {"name": "world", "sources": [source], "download": {"allow_hosts": ["127.0.0.1"]}} | settings
    pathlib.Path(path).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
