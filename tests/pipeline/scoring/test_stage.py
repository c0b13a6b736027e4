"""Scores are made once for each state of images, captions and settings, and the dataset has them by identity."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import artifacts, manifest, storage, subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index, schema, score_file
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import inspection, stages
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.pipeline.scoring import stage
from lotlip_data.pipeline.url_lists.partition import Partition
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun
from tests.pipeline.scoring import scorers
from tests.pipeline.scoring.scorers import words
from tests.support.kills import Killed, kill_at

pytestmark = pytest.mark.usefixtures("without_ray")
without_ray = scorers.without_ray
WRITERS = ("llava", "sharegpt4v")


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    made = fake_run.make(tmp_path / "run", shards=3, writers=WRITERS)
    edit(made.run, scores=[{"kind": "words"}, {"kind": "bytes"}, {"kind": "rank"}])
    return made


def edit(run: Run, **changes: Any) -> None:
    """Change sections of the run's manifest; `clean` and `shard` as mappings."""
    frozen = manifest.frozen(run)
    manifest.freeze(frozen.replace(**changes), run, update=True)


def rows(run: Run) -> dict[str, dict[str, Any]]:
    """The samples of the dataset by uid."""
    content = dataset_index.read_index(run)
    tables = [pq.read_table(file.parquet_url) for file in dataset_index.shard_files(run, content)]
    return {row["uid"]: row for table in tables for row in table.to_pylist()}


def files(run: Run) -> list[str]:
    return sorted(path for path in storage.list_below(run.scores) if "/." not in path)


def contents(run: Run) -> dict[str, bytes]:
    """The scores by scorer and shard; the rest of a name depends on when the images were written."""
    return {name.partition("-")[0]: storage.read_bytes(storage.join(run.scores, name)) for name in files(run)}


def test_the_dataset_has_the_scores_of_each_text_and_image(fake: FakeRun) -> None:
    outcome = stages.score(fake.run)
    assert outcome.failed == [] and outcome.figures["words"]["shards_scored"] == 3
    assert "score: words: 3 shards with 24 images" in outcome.summary
    assert stages.shard(fake.run).failed == []
    samples = rows(fake.run)
    assert len(samples) == 24
    uids = sorted(samples)
    odd = 0
    for uid, row in samples.items():
        for name in WRITERS:
            pieces = subcaptions.split(row[name])
            assert row[f"{name}_words"] == words(row[name])
            assert row[f"{name}_sub_words"] == [words(piece) for piece in pieces]
            assert len(row[f"{name}_sub_scores"]) == len(pieces) and row[f"{name}_score"] is not None
        assert row["raws_words"] == [words(text) for text in row["raws"]]
        assert row["rank"] == uids.index(uid)
        odd += row["bytes"] is None
    assert outcome.figures["bytes"]["without_scores"] == {"odd": odd} and odd
    assert verify(fake.run) == []
    index = dataset_index.read_index(fake.run)
    assert list(index["scorers"]) == ["words", "bytes", "rank"]
    assert schema.dataset_of(index).names == index["columns"]


def test_a_second_call_scores_nothing_and_new_captions_are_scored_again(fake: FakeRun) -> None:
    stages.score(fake.run)
    before = files(fake.run)
    again = stages.score(fake.run)
    assert not again.did_something and files(fake.run) == before
    texts = fake_run.captions_of(fake.run, "llava", 1)
    texts[0]["text"] = "One. Two words."
    fake_run.write_captions(fake.run, "llava", 1, texts)
    third = stages.score(fake.run)
    assert third.figures["words"]["shards_scored"] == 1
    assert third.figures["bytes"]["shards_scored"] == third.figures["rank"]["shards_scored"] == 0
    assert len(files(fake.run)) == len(before), "the scores of the earlier captions are removed"
    stages.shard(fake.run)
    assert rows(fake.run)[texts[0]["uid"]]["llava_sub_words"] == [1, 2]


def test_scores_that_are_missing_or_of_earlier_captions_stop_the_dataset(fake: FakeRun) -> None:
    problem = stages.shard(fake.run).failed
    assert problem[0] == f"missing: scores by words: run `lotlip-data score {fake.run.url}`" and len(problem) == 3
    stages.score(fake.run, ["words"])
    assert [line.split(":")[1] for line in stages.shard(fake.run).failed] == [" scores by bytes", " scores by rank"]
    stages.score(fake.run)
    fake_run.write_captions(fake.run, "llava", 2, fake_run.captions_of(fake.run, "sharegpt4v", 2))
    (line,) = stages.shard(fake.run).failed
    assert line.startswith("missing: scores by words of 1 shard (00002): run")


def test_a_new_captioner_is_scored_before_the_dataset_has_it(fake: FakeRun) -> None:
    stages.score(fake.run)
    fake_run.claim_captioner(fake.run, "instructblip")
    for shard in range(3):
        fake_run.write_captions(fake.run, "instructblip", shard, fake_run.captions_of(fake.run, "instructblip", shard))
    (line,) = stages.shard(fake.run).failed
    assert line.startswith("missing: scores by words of texts by instructblip: run")
    stages.score(fake.run)
    assert stages.shard(fake.run).failed == []


def test_other_settings_replace_the_scores(fake: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    stages.score(fake.run)
    before = [file for file in files(fake.run) if file.startswith("words/0")]
    monkeypatch.setitem(scorers.SCORERS, "words", lambda: scorers.WordCount(2))
    assert stages.score(fake.run).figures["words"]["shards_scored"] == 3
    after = [file for file in files(fake.run) if file.startswith("words/0")]
    assert len(before) == len(after) == 3 and not set(before) & set(after)


def test_a_kill_at_any_step_leaves_the_scores_of_a_calm_run(
    fake: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = fake_run.make(tmp_path / "calm", shards=3, writers=WRITERS)
    edit(calm.run, scores=[{"kind": "words"}, {"kind": "bytes"}, {"kind": "rank"}])
    stages.score(calm.run)
    kills = 0
    for step in itertools.count():
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                stages.score(fake.run)
                break
            except Killed:
                kills += 1
    assert kills > 3 and contents(fake.run) == contents(calm.run)


def test_an_unknown_scorer_is_named(fake: FakeRun) -> None:
    with pytest.raises(UserError, match=r"no scorer sharpness .* its `scores` are words, bytes, rank"):
        stages.score(fake.run, ["sharpness"])
    edit(fake.run, scores=[])
    with pytest.raises(UserError, match="has no `scores`"):
        stages.score(fake.run)


@pytest.mark.parametrize("change", [lambda scores: scores[:-1], lambda scores: [*scores, scores[0]], lambda scores: []])
def test_a_scorer_that_gives_too_few_or_too_many_scores_fails_its_shard(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]
) -> None:
    class Wrong(scorers.WordCount):
        def score(self, images: Any) -> Any:
            yield from change(list(super().score(images)))

    monkeypatch.setitem(scorers.SCORERS, "words", Wrong)
    assert len(stages.score(fake.run, ["words"]).failed) == 3 and files(fake.run) == ["words/scorer.json"]


def test_a_scorer_that_gives_other_texts_fails_its_shard(fake: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(scorers.WordCount):
        def score(self, images: Any) -> Any:
            for of_image in super().score(images):
                yield type(of_image)(texts=of_image.texts[1:])

    monkeypatch.setitem(scorers.SCORERS, "words", Wrong)
    outcome = stages.score(fake.run, ["words"])
    assert len(outcome.failed) == 3 and "scores of other texts or sub-captions" in outcome.failed[0]
    assert score_file.read_scorer(fake.run, "words") is not None and files(fake.run) == ["words/scorer.json"]


def test_repetition_counts_over_the_run_and_lists_the_most_frequent_texts(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers.use_real_scorers(monkeypatch)
    edit(fake.run, scores=["repetition"])
    for shard in range(3):
        texts = fake_run.captions_of(fake.run, "llava", shard)
        for text in texts:
            text["text"] = f"The image is a photograph. {text['text']}"
        fake_run.write_captions(fake.run, "llava", shard, texts)
    assert stages.score(fake.run).failed == [] and stages.shard(fake.run).failed == []
    samples = rows(fake.run).values()
    counts = Counter(piece for row in samples for piece in {p for name in WRITERS for p in row[f"{name}_sub"]})
    for row in samples:
        for name in WRITERS:
            assert row[f"{name}_sub_repetition"] == [counts[piece] for piece in row[f"{name}_sub"]]
        assert row["llava_sub_repetition"][0] == 24
    summary = artifacts.read_json(fake.run.score_summary("repetition"), "")
    most = next(entry for entry in summary["frequent"] if entry["role"] == "sub_caption")
    assert (most["text"], most["images"]) == ("The image is a photograph.", 24)


def next_of(run: Run) -> tuple[str, dict[str, str], list[str]]:
    """The next command, the state of each scorer, and what is stale."""
    status = inspection.status(run)
    states = {line.split()[1]: line.split()[-1] for line in status.summary if line.startswith("score ")}
    stale = [" ".join((entry["stage"], entry["name"])).strip() for entry in status.figures.get("stale", [])]
    return status.figures["next"].split()[1], states, stale


def test_status_says_what_is_scored_and_what_comes_next(fake: FakeRun) -> None:
    partition = Partition(images=27, shards=3, samples_per_shard=9, rows=27, duplicates=0, invalid={}, sources={})
    storage.create(fake.run.plan, json.dumps(asdict(partition)).encode())
    edit(fake.run, captioners=[{"preset": "tiny-llava", "name": name} for name in WRITERS])
    assert next_of(fake.run)[:2] == ("score", {"words": "started", "bytes": "started", "rank": "started"})
    stages.score(fake.run, ["words"])
    assert next_of(fake.run)[:2] == ("score", {"words": "done", "bytes": "started", "rank": "started"})
    stages.score(fake.run)
    assert next_of(fake.run)[0] == "shard"
    stages.shard(fake.run)
    assert next_of(fake.run)[1:] == ({"words": "done", "bytes": "done", "rank": "done"}, [])
    edit(fake.run, clean={"scores": [{"score": "words", "of": "texts", "below": 3}]})
    assert next_of(fake.run)[0::2] == ("shard", ["dataset"])
    stages.shard(fake.run)
    fake_run.write_captions(fake.run, "llava", 2, fake_run.captions_of(fake.run, "sharegpt4v", 2))
    command, states, stale = next_of(fake.run)
    assert (command, states["words"], stale[0]) == ("score", "stale", "score words")


def test_status_counts_the_scores_that_exist_after_a_kill_before_the_record_and_after_new_captions(
    fake: FakeRun,
) -> None:
    edit(fake.run, scores=[{"kind": "bytes"}, {"kind": "words"}])
    stages.score(fake.run)
    expected = inspection.status(fake.run).figures["scorers"]
    for entry in Path(fake.run.score_ledger("bytes")).glob("00001-*"):
        entry.unlink()  # a kill between the scores and their record
    assert inspection.status(fake.run).figures["scorers"]["bytes"]["left"] == 8
    stages.score(fake.run)
    counted = inspection.status(fake.run).figures["scorers"]["bytes"]
    assert [counted[key] for key in ("done", "failed", "left")] == [
        expected["bytes"][key] for key in ("done", "failed", "left")
    ]
    (slow,) = Path(fake.run.score_ledger("words")).glob("00002-*")
    slow.rename(slow.with_name(slow.name.replace("failed0", "failed8").rpartition("-spent")[0] + "-spent99999-gpu0"))
    fake_run.write_captions(fake.run, "llava", 2, fake_run.captions_of(fake.run, "sharegpt4v", 2))
    stages.score(fake.run)
    assert inspection.status(fake.run).figures["scorers"]["words"]["failed"] == 0


def test_a_kill_before_the_last_scores_loses_no_summary(fake: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    scorers.use_real_scorers(monkeypatch)
    edit(fake.run, scores=["repetition"])
    commits = itertools.count()

    def commit(*arguments: Any) -> Any:
        if next(commits) == 2:
            raise Killed
        return committed(*arguments)

    committed = stage.assign_shard
    with monkeypatch.context() as patch:
        patch.setattr(stage, "assign_shard", commit)
        with pytest.raises(Killed):
            stages.score(fake.run)
    assert storage.exists(fake.run.score_summary("repetition"))
    assert stages.score(fake.run).figures["repetition"]["shards_scored"] == 1
