"""What a repository is to hold: the shards of a dataset, its index, and what describes them."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.digests import JSON_KEY, Digest, embed_in_json
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import CARD, CROISSANT, DatasetError
from lotlip_data.manifests.run_layout import DATASET_JSON, Run
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.manifests.wording import count
from lotlip_data.pipeline.dataset import dataset_card
from lotlip_data.pipeline.dataset.metadata import Description
from lotlip_data.pipeline.dataset.publish import encode_view, stale_views
from lotlip_data.pipeline.dataset.stats import dataset_stats
from lotlip_data.pipeline.hub.card import published_card, published_croissant
from lotlip_data.pipeline.hub.layout import Layout

logger = logging.getLogger(__name__)

STATISTICS = "statistics.json"
_SECRET_IN_QUERY = re.compile(r"(^|[&_-])(signature|sig|token|secret|password|key)=", re.IGNORECASE)


@dataclass(frozen=True)
class StoredFile:
    """A file of the dataset, and its place in the repository."""

    path: str
    """In the repository."""
    url: str
    digest: Digest


@dataclass(frozen=True)
class Contents:
    """What a repository is to hold."""

    description: Description
    layout: Layout
    shards: dict[str, StoredFile]
    """By path."""
    documents: dict[str, bytes]
    """The card, the index, Croissant metadata and statistics, by path."""


class _Statistics(TypedDict):
    """The statistics that a run keeps between publications."""

    dataset: str
    """The sha256 of the dataset.json that they are of."""
    statistics: dict[str, Any]


def read_contents(run: Run, images: bool) -> Contents:
    """What a repository of the run's dataset holds, except for its statistics. Reads the index and one listing.

    Args:
        run: The run.
        images: Whether the repository has the tars with the images.

    Raises:
        DatasetError: The dataset is missing, damaged or not complete.
    """
    content = dataset_index.read_index(run)
    description = Description.of(content)
    files = dataset_index.shard_files(run, content)
    layout = Layout.of(files, images)
    shards = {}
    for shard_file in files:
        for file in shard_file.files if images else (shard_file.parquet,):
            stored = StoredFile(layout.path(file.name), run.dataset_file(file.name), file.digest)
            shards[stored.path] = stored
    if not shards:
        raise DatasetError(f"{run.dataset}: the dataset has no samples, so there is nothing to publish.")
    _check_complete(run, shards)
    if stale := stale_views(run, description):
        raise DatasetError(
            f"{', '.join(map(run.dataset_file, stale))}: missing, or not of the dataset that {run.dataset} describes. "
            f"Run `lotlip-data shard {run.url}`, which writes it again."
        )
    card = storage.read_bytes(run.dataset_file(CARD)).decode("utf-8", "surrogateescape")
    card = dataset_card.declaring_columns(card, description)  # a card of an earlier release may not
    documents = {
        CARD: published_card(card, description, layout).encode("utf-8", "surrogateescape"),
        CROISSANT: encode_view(published_croissant(description, layout)),
        DATASET_JSON: _public_index(run, content),
    }
    return Contents(description, layout, shards, documents)


def _check_complete(run: Run, shards: Mapping[str, StoredFile]) -> None:
    """Raise DatasetError if the storage lacks a file. The digests are compared when the files are uploaded."""
    names = {run.dataset_file(name) for name in storage.list_names(run.shards)}
    if missing := sorted(file.url for file in shards.values() if file.url not in names):
        others = f" and {count(len(missing) - 1, 'other file')}" if len(missing) > 1 else ""
        raise DatasetError(
            f"{missing[0]}{others}: missing, although {run.dataset} names {'them' if others else 'it'}. "
            f"`lotlip-data verify {run.url}` says what to do."
        )


def _public_index(run: Run, content: Mapping[str, Any]) -> bytes:
    """dataset.json without the passwords and signatures in URLs of lists, which everyone could read."""
    data = storage.read_bytes(run.dataset)
    sources = content["manifest"].get("sources", ())
    secret = {url: source["name"] for source in sources for url in source.get("files", ()) if _has_secret(url)}
    if not secret:
        return data
    logger.warning(
        f"{DATASET_JSON} is published without the passwords and signatures in the URLs of lists of "
        f"{', '.join(dict.fromkeys(secret.values()))}"
    )
    head = data[: data.rindex(f',\n "{JSON_KEY}"'.encode())]
    for url in secret:
        parts = urlsplit(url)
        public = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        head = head.replace(
            json.dumps(url, ensure_ascii=False).encode(), json.dumps(public, ensure_ascii=False).encode()
        )
    return embed_in_json(head + b"}")


def _has_secret(url: str) -> bool:
    parts = urlsplit(url) if "://" in url else None
    return parts is not None and bool(parts.password or _SECRET_IN_QUERY.search(parts.query))


def statistics(run: Run, contents: Contents) -> bytes:
    """The statistics of the dataset, as `lotlip-data stats --json` prints them. They are computed once per dataset."""
    dataset = hashlib.sha256(contents.documents[DATASET_JSON]).hexdigest()
    stored = _stored_statistics(run)
    if stored is None or stored["dataset"] != dataset:
        stored = _Statistics(dataset=dataset, statistics=dataset_stats(run))
        with contextlib.suppress(DiskError):  # a run that this user may only read
            storage.replace(run.statistics, artifacts.encode_json(stored))
    return encode_view(stored["statistics"])


def _stored_statistics(run: Run) -> _Statistics | None:
    try:
        return artifacts.read_json(run.statistics, "", _Statistics)
    except (FileNotFoundError, UserError):  # they can be computed again
        return None
