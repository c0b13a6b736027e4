"""Every stage that reads a missing or damaged Parquet file of a run names the file and the remedy."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation import decontamination, exclusions, perceptual_hash
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.downloading import commit as fetch_commit
from lotlip_data.pipeline.downloading.commit import DownloadTask
from lotlip_data.pipeline.recaptioning import results as caption_commit
from tests.pipeline import run_fixture as fake_run


def _fetch(run: Run) -> object:
    return fetch_commit.fetch_and_commit(DownloadTask(run, 0, 10, DownloadSettings()))


def _survey(run: Run) -> object:
    clean = fake_run.make_manifest(clean={"duplicates": True}).clean
    return exclusions.survey_shard(run, clean, Filters(), None, (0, "a"))


READERS: dict[str, tuple[str, Callable[[Run], object], str]] = {
    "the rows to fetch": ("lists/00000.parquet", _fetch, "Remove {url} and {run.plan}; `lotlip-data download`"),
    "the rows that failed": (
        "images/00000-attempt.parquet",
        lambda run: fetch_commit.failed_rows(run, 0, ledger.read_image_stats(run, 0), ["key"]),
        "Remove {run.images}/00000_stats.json and run `lotlip-data download` again.",
    ),
    "the images to survey": (
        "images/00000-attempt.parquet",
        _survey,
        "Remove {run.images}/00000_stats.json and run `lotlip-data download` again.",
    ),
    "captions": (
        "captions/llava/00000.parquet",
        lambda run: caption_commit.finish_commit(run, "llava", 0),
        "Remove {url}; its images are captioned again.",
    ),
    "hashes": ("clean/hashes/00000-a.parquet", lambda run: perceptual_hash.shard_hashes(run, 0, "a"), "Remove {url}; "),
    "what is left out": (
        "clean/left_out/a.parquet",
        lambda run: exclusions.read_list(run, "a.parquet"),
        "Remove it and {run.url}/clean/left-out-*.json; `lotlip-data shard` makes them again.",
    ),
    "evaluation images": (
        "clean/evaluation/a.parquet",
        lambda run: decontamination.read_evaluation_hashes(run, "a"),
        "Remove {url}; `lotlip-data shard` makes it again.",
    ),
}


@pytest.mark.parametrize("content", READERS)
def test_the_error_for_a_damaged_parquet_file_names_it_and_the_remedy(tmp_path: Path, content: str) -> None:
    run = fake_run.make(tmp_path, shards=1, writers=["llava"]).run
    name, read, remedy = READERS[content]
    url = storage.join(run.url, name)
    storage.replace(url, b"PAR1 and no more")
    with pytest.raises(UserError) as error:
        read(run)
    assert str(error.value).startswith(f"{url}: cannot be read (") and "\n" not in str(error.value)
    assert remedy.format(url=url, run=run) in str(error.value)


def test_a_missing_parquet_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.parquet: is missing, .*\. Fetch it\.$"):
        artifacts.read_parquet(str(tmp_path / "a.parquet"), "Fetch it.")


def test_a_missing_column_is_damage_too(tmp_path: Path) -> None:
    run = fake_run.make(tmp_path, shards=1, writers=["llava"]).run
    with pytest.raises(UserError, match=r"00000\.parquet: cannot be read \(.*words.*\)\. Mend it\.$"):
        artifacts.read_parquet(run.caption_shard("llava", 0), "Mend it.", ["uid", "words"])


def test_columns_may_be_any_sequence(tmp_path: Path) -> None:
    url = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"uid": ["a"], "text": ["b"], "url": ["c"]}), url)
    for columns in (("uid", "url"), ["uid", "url"]):
        assert artifacts.read_parquet(url, "", columns).column_names == ["uid", "url"]
        assert next(artifacts.iter_parquet(url, "", columns)).schema.names == ["uid", "url"]
