"""`verify` reads every kind of file; a flipped bit is named with its file and remedy, or is in no content."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from lotlip_data.manifests import artifacts, digests, storage
from lotlip_data.manifests.checkpoints import model_folder
from lotlip_data.manifests.digests import digest_of_bytes
from lotlip_data.manifests.formats import feature_file
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.pipeline.url_lists.partition import Partition
from lotlip_data.pipeline.verification.inputs import verify_captions, verify_images, verify_lists
from lotlip_data.pipeline.verification.models import verify_features, verify_trainings
from lotlip_data.pipeline.verification.run import verify_dataset, verify_run
from tests.pipeline import run_fixture
from tests.pipeline.run_fixture import FakeRun

FLIPS_PER_FILE = 16


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A run with every kind of file, each written as the product does."""
    fake = run_fixture.make(tmp_path_factory.mktemp("pristine") / "run", shards=2, writers=["llava"])
    run = fake.run
    recipe = metadata.Recipe({"llava": "llava@1"}, Filters())
    records = [run_fixture.build(run, recipe, number) for number in range(2)]
    publish(run, fake.manifest, recipe, records)
    partition = Partition(18, 2, 9, 18, 0, {}, {"web": 18})
    storage.create(run.plan, artifacts.encode_json(vars(partition)))
    for record in records:
        (output,) = record.outputs
        features = np.random.default_rng(0).normal(size=(output.samples, 256)).astype(np.float16)
        url = run.features("tower", feature_file.file_name(output.sha256))
        storage.create(url, feature_file.encode_features(features))
    _write_training(run)
    return fake


def _write_training(run: Run) -> None:
    model = Path(run.trained_model("lotlip"))
    model.mkdir(parents=True)
    for name in (model_folder.WEIGHTS, "tokenizer.json"):
        (model / name).write_bytes(random.Random(name).randbytes(3000))
    config = {
        "format": 1,
        "context_length": 64,
        "text_form": "authors",
        "towers": {"image": {"model_type": "vit"}, "text": {"model_type": "bert"}, "corner_tokens": 2, "mask": True},
        "transform": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }
    names = [path.name for path in model.iterdir()]
    (model / model_folder.CONFIG).write_bytes(model_folder.encode_config(config, model, names))
    result = {"model": str(model), "steps": 3, "loss": 0.5, "seconds": 1.0}
    storage.create(run.training_done("lotlip"), artifacts.encode_json(result))
    storage.create(storage.join(run.train("lotlip"), "config.json"), artifacts.encode_json({"lr": 0.001}))
    content = random.Random(1).randbytes(2000)
    checkpoint = storage.join(run.train("lotlip"), "checkpoints", "step-00000002.ckpt")
    storage.create(checkpoint, digest_of_bytes(content).sha256.encode() + content)


@pytest.fixture
def run(pristine: FakeRun, tmp_path: Path) -> Run:
    shutil.copytree(pristine.run.url, tmp_path / "run")
    return Run.at(str(tmp_path / "run"))


def test_an_intact_run_has_no_problem_and_a_digest_of_every_file(run: Run) -> None:
    check = verify_run(run)
    assert check.problems == []
    assert {tally.kind: tally.unrecorded for tally in check.tallies} == dict.fromkeys(
        ("lists", "images", "captions", "dataset", "features", "trainings"), 0
    )


KINDS = {
    "lists": ("lists/*", verify_lists),
    "images": ("images/0*", verify_images),
    "captions": ("captions/llava/0*.parquet", verify_captions),
    "captioner settings": ("captions/llava/captioner.json", verify_captions),
    "dataset": ("shards/*.tar", verify_dataset),
    "dataset tables": ("shards/*.parquet", verify_dataset),
    "dataset index": ("shards/dataset.json", verify_dataset),
    "dataset markers": ("shards/.done/*", verify_dataset),
    "features": ("features/tower/*", verify_features),
    "training": ("train/lotlip/*.json", verify_trainings),
    "checkpoints": ("train/lotlip/checkpoints/*", verify_trainings),
    "model": ("train/lotlip/model/*", verify_trainings),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_named_with_its_file_or_is_in_no_content(run: Run, kind: str) -> None:
    """The few bits without content are the marks of digests in Parquet files, and times and flags in archives."""
    pattern, check = KINDS[kind]
    generator, unnoticed, flips = random.Random(kind), 0, 0
    for file in sorted(path for path in Path(run.url).glob(pattern) if path.is_file()):
        content = file.read_bytes()
        for _ in range(FLIPS_PER_FILE):
            position = generator.randrange(len(content))
            damaged = bytearray(content)
            damaged[position] ^= 1 << generator.randrange(8)
            file.write_bytes(damaged)
            problems = check(run).problems
            assert all("\n" not in problem for problem in problems)
            assert not problems or any(str(file) in problem for problem in problems)
            flips, unnoticed = flips + 1, unnoticed + (not problems)
        file.write_bytes(content)
    assert flips and unnoticed <= 0.1 * flips


@pytest.mark.parametrize(
    "pattern", ["images/00000-*.tar", "images/00001-*.parquet", "train/lotlip/model/tokenizer.json"]
)
def test_a_removed_file_of_a_finished_run_is_noticed(run: Run, pattern: str) -> None:
    (file,) = Path(run.url).glob(pattern)
    file.unlink()
    (problem,) = verify_run(run).problems
    assert problem.startswith(f"{file}: is missing") and ("Remove" in problem or "again" in problem)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("images/00001_stats.json", "but the shard was downloaded. Run `lotlip-data download` again."),
        ("captions/llava/00001.parquet", "but the shard was captioned. Run `lotlip-data recaption"),
        ("captions/llava/captioner.json", "but there are captions beside it. Put it back from a copy"),
        ("shards/dataset.json", "but shards of a dataset are built. Run `lotlip-data shard"),
        ("train/lotlip/model/config.json", "but the training is finished. Remove"),
    ],
)
def test_a_removed_file_that_says_that_work_is_done_is_noticed(run: Run, path: str, remedy: str) -> None:
    for folder in (run.image_ledger, run.caption_ledger("llava")):
        for shard in range(2):
            ledger.record(folder, shard, ledger.WorkRecord(9, 1, 100, 1, 2))
    assert verify_run(run).problems == []
    Path(run.url, path).unlink()
    assert any(problem.startswith(f"{run.url}/{path}: is missing, {remedy}") for problem in verify_run(run).problems)


def test_a_training_that_is_not_finished_lacks_nothing(run: Run) -> None:
    shutil.rmtree(run.trained_model("lotlip"))
    Path(run.training_done("lotlip")).unlink()
    assert verify_run(run).problems == []


def test_files_of_an_earlier_release_are_read_and_counted_as_not_recorded(run: Run) -> None:
    run_fixture.forget_digests(run, 0)
    plan = json.loads(storage.read_bytes(run.plan))
    del plan[digests.JSON_KEY]
    storage.replace(run.plan, json.dumps(plan).encode())
    check = verify_run(run)
    assert check.problems == []
    assert {tally.kind: tally.unrecorded for tally in check.tallies if tally.unrecorded} == {"images": 3, "lists": 1}
    assert check.to_dict()["read"]["images"] == {"files": 6, "not_recorded": 3}
    assert any(tally.line() == "images: 6 files read, 3 of them without a recorded sha256" for tally in check.tallies)


def test_a_copied_dataset_is_verified_without_its_run(run: Run) -> None:
    for folder in ("lists", "images", "captions", "train", "features", "manifest.yaml"):
        path = Path(run.url, folder)
        path.unlink() if path.is_file() else shutil.rmtree(path)
    check = verify_run(run)
    assert check.problems == [] and [tally.kind for tally in check.tallies] == ["dataset"]


def test_as_many_captions_of_other_images_are_noticed(run: Run) -> None:
    rows = run_fixture.captions_of(run, "llava", 0)
    run_fixture.write_captions(run, "llava", 0, [rows[0] | {"uid": "f" * 32}, *rows[1:]])
    (problem,) = verify_run(run).problems
    assert "captions/llava/00000.parquet has no row for image" in problem and "Remove" in problem


def test_captions_of_part_of_a_shard_are_noticed(run: Run) -> None:
    run_fixture.write_captions(run, "llava", 0, run_fixture.captions_of(run, "llava", 0)[:5])
    (problem,) = verify_run(run).problems
    assert (
        "captions/llava/00000.parquet: has captions or reasons of 5 images, but the shard has 8. Remove it" in problem
    )
