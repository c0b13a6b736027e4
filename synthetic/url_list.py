"""Lists of the offline world's images, with the faults that real lists have."""

import csv
import json
import pathlib
import random
from collections.abc import Mapping, Sequence

import yaml

from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.scenes import sample_scene

FAULTS = ("dead", "gone", "error", "html", "truncated", "short", "empty", "loop", "slow", "robots", "redirect")
"""Paths of the world's server; a redirect leads to an image all the same."""

_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}


def rows(base_url: str, scenes: Sequence[int], faults: Mapping[str, int]) -> list[tuple[str, str]]:
    """(url, raw text) of every scene and of `faults[kind]` faulty links of each kind, shuffled; always the same.

    The faulty links have the seeds that follow on the last scene's. Raises ValueError for an unknown kind.
    """
    found = [(f"{base_url}/scene/{seed}.jpg", seed) for seed in scenes]
    seed = max(scenes, default=-1) + 1
    for kind, count in faults.items():
        if kind not in FAULTS:
            raise ValueError(f"no fault {kind!r}: choose among {', '.join(FAULTS)}")
        found += [(f"{base_url}/{kind}/{seed + offset}.jpg", seed + offset) for offset in range(count)]
        seed += count
    random.Random(0).shuffle(found)
    return [(url, raw_text(sample_scene(seed))) for url, seed in found]


def write_list(path: str, base_url: str, scenes: Sequence[int], faults: Mapping[str, int] | None = None) -> int:
    """Write the list of `rows` into the local file `path`, in the format of its ending, and return its length.

    The columns are `caption` and `url`; a TSV has no header, as CC3M's has none. Raises ValueError for an ending other
    than .csv, .tsv, .jsonl and .parquet.
    """
    content = rows(base_url, scenes, faults or {})
    kind = _ENDINGS.get(pathlib.Path(path).suffix)
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        urls, texts = ([row[column] for row in content] for column in (0, 1))
        pq.write_table(pa.table({"caption": texts, "url": urls}), path)
    elif kind is None:
        raise ValueError(f"{path}: a list ends in {', '.join(_ENDINGS)}")
    else:
        with open(path, "w", encoding="utf-8", newline="") as stream:
            if kind == "csv":
                csv.writer(stream).writerows([("caption", "url"), *((text, url) for url, text in content)])
            elif kind == "tsv":
                stream.writelines(f"{text}\t{url}\n" for url, text in content)
            else:
                stream.writelines(json.dumps({"caption": text, "url": url}) + "\n" for url, text in content)
    return len(content)


def write_manifest(path: str, list_path: str, **settings: object) -> None:
    """Write the YAML manifest of one list of `write_list`; `settings` replace or add to its settings."""
    source: dict[str, object] = {"name": "world", "files": [list_path]}
    if list_path.endswith(".tsv"):
        source["columns"] = ["caption", "url"]
    manifest = {"name": "world", "sources": [source], "download": {"allow_hosts": ["127.0.0.1"]}} | settings
    pathlib.Path(path).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
