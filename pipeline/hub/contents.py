"""What a repository is to hold: the shards of a dataset, its index, and what describes them."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
from lotlip_data.pipeline.hub.card import card_text, published_card, published_croissant
from lotlip_data.pipeline.hub.layout import Layout

logger = logging.getLogger(__name__)

STATISTICS = "statistics.json"
_URL = re.compile(r"[\w+.:-]+://\S+")
_USER = re.compile(r"(?<=://)[^/?#]*@")
_QUERY = re.compile(r"[?#].*")
_SECRET_IN_QUERY = re.compile(r"[?&#][^=&]*(sig|token|secret|pass|pwd|key|auth|cred|policy)[^=&]*=", re.IGNORECASE)


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
        UserError: The card is not in UTF-8, or its front matter is no YAML.
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
    card = card_text(storage.read_bytes(run.dataset_file(CARD)), run.dataset_file(CARD))
    card = dataset_card.declaring_columns(card, description)  # a card of an earlier release may not
    secrets = _urls_with_secrets(content["manifest"])
    documents = {
        CARD: _without(secrets, published_card(card, description, layout).encode()),
        CROISSANT: _without(secrets, encode_view(published_croissant(description, layout))),
        DATASET_JSON: _public_index(run, secrets),
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


def _public_index(run: Run, secrets: Mapping[str, str]) -> bytes:
    """dataset.json without the passwords and signatures in URLs of the manifest, which everyone could read."""
    data = storage.read_bytes(run.dataset)
    if not secrets:
        return data
    first, *others = dict.fromkeys(secrets.values())
    named = f"{first} and {count(len(others), 'other URL')}" if others else first
    logger.warning(f"{DATASET_JSON} is published without the passwords and signatures in {named}")
    head = data[: data.rindex(f',\n "{JSON_KEY}"'.encode())]
    return embed_in_json(_without(secrets, head) + b"}")


def _without(secrets: Mapping[str, str], content: bytes) -> bytes:
    """A document with the public forms of URLs that have secrets. The longest come first: one can begin another."""
    for url in sorted(secrets, key=len, reverse=True):
        for encode in (str, _in_json):
            content = content.replace(encode(url).encode(), encode(secrets[url]).encode())
    return content


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _urls_with_secrets(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The URLs in a manifest that have a password or a signature → their public forms."""
    urls = filter(_URL.fullmatch, _texts(manifest))
    return {url: public for url in urls if (public := _public_url(url)) != url}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _public_url(url: str) -> str:
    """A URL without its user and password, and without a query that seems to have a secret."""
    url = _USER.sub("", url)
    return _QUERY.sub("", url) if _SECRET_IN_QUERY.search(url) else url


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
