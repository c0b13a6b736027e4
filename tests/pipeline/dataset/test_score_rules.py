"""What a manifest says wrongly about scores is named before anything is downloaded or scored."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline import inspection, stages
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import SHARD_SECTION, FakeRun
from tests.pipeline.scoring import scorers
from tests.pipeline.scoring.test_stage import edit, rows

without_ray = scorers.without_ray
WRITERS = ("llava", "sharegpt4v")


def rule(score: str, of: str = "texts", **limit: float) -> dict[str, Any]:
    return {"clean": {"scores": [{"score": score, "of": of} | (limit or {"below": 1.0})]}}


def named(kind: str, name: str) -> dict[str, Any]:
    return {"scores": [{"kind": kind, "name": name}]}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (rule("sharp"), r"`clean.scores.0`: there is no scorer sharp; the manifest has repetition, placeholder, score"),
        (rule("placeholder"), r"`clean.scores.0`: placeholder scores images, so the rule is `of: samples`"),
        (rule("score"), r"`clean.scores.0`: no scorer has a weight .* such as `{repetition: 1}`"),
        ({"scores": [], **rule("score")}, r"the manifest has no `scores`"),
        ({"scores": ["placeholder"], **rule("score")}, r"no scorer of texts, so there is no combined score"),
        ({"shard": {"score_weights": {"words": 1}}}, r"words is no scorer of texts; they are repetition"),
        (
            {"scores": [], "shard": {"score_weights": {"words": 1}}},
            r"words is no scorer of texts; the manifest has none",
        ),
        ({"shard": {"score_weights": {"repetition": -1}}}, r"`shard.score_weights.repetition`: -1"),
        (named("repetition", "score"), r"a column 'llava_score' already; rename it"),
        (named("repetition", "scores"), r"a column 'llava_sub_scores' already; rename it"),
        (named("repetition", "flags"), r"a column 'llava_flags' already; rename it"),
        (named("repetition", "colour"), r"a column 'llava_colour' already; rename it"),
        (named("placeholder", "url"), r"a column 'url' already; rename it"),
        (named("placeholder", "llava"), r"a column 'llava' already; rename it"),
    ],
)
def test_a_wrong_rule_weight_or_name_is_named_before_the_download(settings: dict[str, Any], problem: str) -> None:
    properties = {"colour": {"type": "string"}}
    form = {"type": "object", "properties": properties, "required": ["colour"], "additionalProperties": False}
    content = {
        "name": "web",
        "sources": [{"name": "web", "files": ["web.csv"]}],
        "captioners": [{"preset": "llava", "structured": {"json_schema": form, "columns": ["colour"]}}],
        "scores": ["repetition", "placeholder"],
    }
    stages.load_manifest(content)
    with pytest.raises(UserError, match=problem):
        stages.load_manifest(content | settings)


@pytest.fixture
def fake(tmp_path: Path, without_ray: None) -> FakeRun:
    made = fake_run.make(tmp_path / "run", shards=2, writers=WRITERS)
    edit(made.run, scores=[{"kind": "words"}, {"kind": "bytes"}])
    return made


@pytest.mark.parametrize(
    "changes",
    [
        rule("sharp"),
        {"shard": SHARD_SECTION | {"score_weights": {"sharp": 1}}},
        {"scores": [{"kind": "words"}, {"kind": "words", "name": "score"}]},
    ],
)
def test_nothing_is_scored_while_a_rule_or_a_name_is_wrong(fake: FakeRun, changes: dict[str, Any]) -> None:
    edit(fake.run, **changes)
    with pytest.raises(UserError, match=r"sharp|llava_score"):
        stages.score(fake.run, ["words"])
    assert not storage.exists(fake.run.scores)


@pytest.mark.parametrize("scorer", ["words", "bytes"])
def test_scores_of_other_images_name_their_file_and_come_back_once_it_is_removed(fake: FakeRun, scorer: str) -> None:
    stages.score(fake.run)
    assert stages.shard(fake.run).failed == []
    expected = rows(fake.run)
    shutil.rmtree(fake.run.shards)
    shutil.rmtree(fake.run.score_limits)
    first, second = sorted(Path(fake.run.scorer(scorer)).glob("*.parquet"))
    shutil.copyfile(second, first)
    with pytest.raises(UserError, match=rf"{first}.*have different images. Remove both and run `lotlip-data score`"):
        stages.shard(fake.run)
    first.unlink()
    assert stages.score(fake.run).failed == [] and stages.shard(fake.run).failed == []
    assert rows(fake.run) == expected


def test_verify_reads_the_limits_that_follow_from_all_scores(fake: FakeRun) -> None:
    stages.score(fake.run)
    stages.shard(fake.run)
    assert inspection.verify(fake.run).problems == []
    (limits,) = Path(fake.run.score_limits).iterdir()
    limits.write_text('{"scorers": 3}')
    (problem,) = inspection.verify(fake.run).problems
    assert str(limits) in problem and "Remove it" in problem
