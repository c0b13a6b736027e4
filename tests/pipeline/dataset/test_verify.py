"""Verification reports every kind of damage, and nothing for an intact dataset."""

import dataclasses
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import artifacts, digests
from lotlip_data.manifests.digests import digest_of
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset.publish import publish as publish_dataset
from lotlip_data.pipeline.dataset.stage import shard
from lotlip_data.pipeline.dataset.verify import verify
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A dataset of three shards; the last one has no samples."""
    fake = fake_run.make(tmp_path_factory.mktemp("pristine") / "run", shards=2)
    fake_run.commit_images(fake.run, 2, [], [])
    for name in ("instructblip", "llava", "sharegpt4v"):
        fake_run.write_captions(fake.run, name, 2, [])
    publish(fake)
    return fake


def publish(fake: FakeRun) -> None:
    """Build and publish the dataset of the run, without Ray."""
    recipe = metadata.Recipe({name: f"{name}@1" for name in ("instructblip", "llava", "sharegpt4v")}, Filters())
    records = [fake_run.build(fake.run, recipe, number) for number in range(3)]
    publish_dataset(fake.run, fake.manifest, recipe, records)


@pytest.fixture
def run(pristine: FakeRun, tmp_path: Path) -> Run:
    shutil.copytree(pristine.run.url, tmp_path / "run")
    return Run.at(str(tmp_path / "run"))


def problems(run: Run) -> dict[str, str]:
    """The problems by file name. Asserts that each file is reported once."""
    every = verify(run)
    by_name = {problem.where.rsplit("/", 1)[-1]: problem.what for problem in every}
    assert len(by_name) == len(every)
    return by_name


def marker(run: Run, shard: int) -> Path:
    (path,) = Path(run.shards, dataset_index.MARKERS).glob(f"{shard:05d}-*.json")
    return path


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_an_intact_dataset_has_no_problem(run: Run) -> None:
    assert verify(run) == []


@pytest.mark.parametrize("name", ["train-00000.tar", "train-00001.parquet"])
def test_a_flipped_bit_in_any_part_of_a_file_is_reported(run: Run, name: str) -> None:
    path = Path(run.shards, name)
    size = path.stat().st_size
    for offset in (0, size // 3, size // 2, size - 1):
        flip(path, offset)
        assert problems(run).keys() == {name}
        assert "damaged: its sha256 is" in problems(run)[name]
        flip(path, offset)
    assert verify(run) == []


def test_a_truncated_tar_is_reported(run: Run) -> None:
    path = Path(run.shards, "train-00000.tar")
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged: it has 5000 bytes, not" in problems(run)["train-00000.tar"]


@pytest.mark.parametrize("name", ["train-00000.tar", "train-00000.parquet"])
def test_a_missing_file_is_reported(run: Run, name: str) -> None:
    Path(run.shards, name).unlink()
    assert problems(run).keys() == {name}
    assert problems(run)[name].startswith("missing")


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_swapped_files_are_reported_with_the_names_they_belong_to(run: Run, ending: str) -> None:
    first, second = (Path(run.shards, f"train-0000{number}.{ending}") for number in (0, 1))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    problem_by_name = problems(run)
    assert problem_by_name.keys() == {first.name, second.name}
    assert f"has the content of {second.name}" in problem_by_name[first.name]
    assert f"has the content of {first.name}" in problem_by_name[second.name]


def test_foreign_files_are_reported(run: Run) -> None:
    Path(run.shards, "train-00007.tar").write_bytes(b"")
    assert problems(run) == {
        "train-00007.tar": f"foreign: {run.dataset} does not name it; a file of an abandoned rewrite is "
        f"removed a day later: run `lotlip-data shard {run.url}`"
    }


def with_another_count(path: Path) -> bytes:
    """The marker at `path` with another number of samples, and the sha256 that fits."""
    content = json.loads(path.read_text())
    del content[digests.JSON_KEY]
    return artifacts.encode_json(content | {"samples": 9})


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text("{"), "damaged"),
        (lambda path: path.write_text(path.read_text().replace('"samples": 8', '"samples": 9')), "damaged"),
        (lambda path: path.write_bytes(with_another_count(path)), "differs from the entry"),
    ],
)
def test_a_marker_that_is_missing_damaged_or_different_is_reported(
    run: Run, damage: Callable[[Path], None], message: str
) -> None:
    path = marker(run, 1)
    damage(path)
    assert problems(run).keys() == {path.name}
    assert message in problems(run)[path.name]


def test_a_missing_or_damaged_dataset_json_is_an_error(run: Run) -> None:
    Path(run.dataset).write_text("{")
    with pytest.raises(DatasetError, match="not JSON"):
        verify(run)
    Path(run.dataset).unlink()
    with pytest.raises(DatasetError, match="the run has no dataset yet"):
        verify(run)


def rewrite(run: Run, number: int, name: str, content: bytes) -> None:
    """Replace the content of a file of the dataset and adjust all checksums, so that only its content is wrong."""
    Path(run.shards, name).write_bytes(content)
    index = dataset_index.read_index(run)
    records = dataset_index.read_records(run, index)
    (output,) = records[number].outputs
    digest = digest_of(f"{run.shards}/{name}")
    field = name.rsplit(".", 1)[-1]
    file = dataclasses.replace(getattr(output, field), bytes=digest.bytes, sha256=digest.sha256)
    records[number] = dataclasses.replace(records[number], outputs=(dataclasses.replace(output, **{field: file}),))
    marker(run, number).write_text(json.dumps(records[number].to_dict()))
    for entry in (item for key in dataset_index.SPLITS.values() for item in index[key] if item[field]["name"] == name):
        entry[field] = dataclasses.asdict(file)
    Path(run.dataset).write_text(json.dumps(index))


def without(path: Path, lost: str) -> bytes:
    """The tar at `path` without the member `lost`."""
    content = io.BytesIO()
    with tarfile.open(path) as source, tarfile.open(fileobj=content, mode="w") as target:
        for member in source:
            if member.name != lost:
                target.addfile(member, source.extractfile(member))
    return content.getvalue()


def test_a_sample_without_one_of_its_members_is_reported(run: Run) -> None:
    rewrite(run, 0, "train-00000.tar", without(Path(run.shards, "train-00000.tar"), "000000003.txt"))
    assert problems(run) == {"train-00000.tar": "sample 000000003 has the members jpg, json"}


def test_different_samples_in_a_tar_and_its_parquet_are_reported(run: Run) -> None:
    table = pq.read_table(f"{run.shards}/train-00000.parquet")
    pq.write_table(table.slice(1), f"{run.shards}/train-00000.parquet")
    rewrite(run, 0, "train-00000.parquet", Path(run.shards, "train-00000.parquet").read_bytes())
    problem_by_name = problems(run)
    assert (
        "has other samples than" in problem_by_name["train-00000.tar"]
        and "000000000" in problem_by_name["train-00000.tar"]
    )
    assert f"has 7 rows, but {run.dataset} says 8" in problem_by_name["train-00000.parquet"]


def test_a_parquet_with_other_columns_is_reported(run: Run) -> None:
    table = pq.read_table(f"{run.shards}/train-00000.parquet")
    pq.write_table(table.drop_columns(["llava"]), f"{run.shards}/train-00000.parquet")
    rewrite(run, 0, "train-00000.parquet", Path(run.shards, "train-00000.parquet").read_bytes())
    assert "has other columns" in problems(run)["train-00000.parquet"]


def test_a_uid_in_two_shards_is_reported(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=2)
    fake_run.write_images(fake.run, 2, [3_000_003])
    for name in ("instructblip", "llava", "sharegpt4v"):
        fake_run.write_captions(fake.run, name, 2, fake_run.captions_of(fake.run, name, 2))
    publish(fake)
    uid = fake_run.fetched_rows(fake.run, 2)[0]["uid"]
    (problem,) = verify(fake.run)
    assert problem.what == f"uid {uid} occurs 2 times, in train-00000.tar and train-00002.tar"


def test_a_damaged_shard_is_built_again_by_the_reported_command(run: Run, pristine: FakeRun, ray_cluster: None) -> None:
    path = Path(run.shards, "train-00000.tar")
    flip(path, 700)
    (problem,) = verify(run)
    assert f"remove {marker(run, 0)} and run `lotlip-data shard {run.url}`" in problem.what
    marker(run, 0).unlink()
    assert shard(pristine.manifest, run).built == 1
    assert verify(run) == []
    assert not path.exists()  # the damaged file stays until dataset.json names another one
    (rebuilt,) = (output for output in dataset_index.read_index(run)["shards"] if output["input"] == 0)
    intact = Path(pristine.run.shards, path.name).read_bytes()
    assert Path(run.shards, rebuilt["tar"]["name"]).read_bytes() == intact
