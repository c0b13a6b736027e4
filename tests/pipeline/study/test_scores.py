"""The study of scores: figures are what they are called, arms differ in their texts alone, the page is correct."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study.scores import data
from lotlip_data.pipeline.study.scores.design import ARMS, RATES, ROLES, SCORERS, SETTINGS, Gallery, ScoresDesign
from lotlip_data.pipeline.study.scores.detection import auc, labels
from lotlip_data.pipeline.study.scores.jobs import CellJob, ImagesJob, plan_jobs, result_url
from lotlip_data.pipeline.study.scores.main import rebuild_scores_page
from lotlip_data.pipeline.study.scores.report import render_page, write_page
from lotlip_data.pipeline.study.scores.results import ScoresResults
from lotlip_data.synthetic.caption_writers import WRITERS
from lotlip_data.synthetic.hard_scenes import ErrorRates, crowded_scene, misread
from lotlip_data.training.data.dataset import open_dataset
from tests.support.paths import ROOT

SMALL = ScoresDesign(
    settings=SETTINGS | {"epochs": 1, "batch": 16, "warm_up": 1, "checkpoint_every": 1},
    scenes=48,
    gallery=Gallery(groups=4, twins=3),
)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_the_error_rate_is_the_share_of_statements_of_every_captioner_that_are_wrong(rate: float) -> None:
    scenes = [crowded_scene(seed) for seed in range(600)]
    for writer in WRITERS:
        heard = [misread(scene, writer, ErrorRates(rate, 0.0)) for scene in scenes]
        pairs = [(scene, each) for scene, each in zip(scenes, heard, strict=True)]
        objects = sum(len(scene.objects) for scene in scenes)
        assert all(len(each.objects) == len(scene.objects) for scene, each in pairs)
        wrong = sum(len(set(each.objects) - set(scene.objects)) for scene, each in pairs)
        assert wrong / objects == pytest.approx(rate, abs=0.03)


def test_errors_are_the_same_in_every_call_and_the_captioners_own_rates_are_the_default() -> None:
    scene = crowded_scene(7)
    assert misread(scene, "llava", ErrorRates(0.4, 0.0)) == misread(scene, "llava", ErrorRates(0.4, 0.0))
    assert misread(scene, "llava") == misread(scene, "llava", ErrorRates(wrong=0.10, omitted=0.08))
    assert misread(scene, "llava", ErrorRates(0.0, 0.0)) == scene


def test_labels_name_wrong_sub_captions_and_those_that_describe_an_object() -> None:
    scene = crowded_scene(1)
    right = data.sub_captions(scene, 0.0)
    wrong = right | {"llava": ["In the centre of the image there is a pink elephant", *right["llava"][1:]]}
    is_wrong, is_statement = labels([scene, scene], [right, wrong])
    assert is_wrong.sum() == 1 and len(is_wrong) == 2 * sum(map(len, right.values()))
    assert is_statement[: len(is_statement) // 2].sum() == 3 * len(scene.objects)


def test_auc_is_the_probability_that_a_right_sub_caption_scores_higher() -> None:
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 9, 300).astype(float), rng.random(300) < 0.3
    higher = scores[~wrong][:, None] - scores[wrong][None]
    assert auc(scores, wrong) == pytest.approx(((higher > 0) + 0.5 * (higher == 0)).mean())
    assert auc(-np.arange(4.0), np.array([False, False, True, True])) == 1
    assert auc(scores, np.zeros(300, bool)) is auc(scores, np.ones(300, bool)) is None


def test_results_are_keyed_by_what_a_role_computes() -> None:
    design = ScoresDesign()
    assert len({design.key(role) for role in ROLES}) == len(ROLES)
    changes: list[tuple[dict, set[str]]] = [
        ({"dropped": 0.3}, {"filtered"}),
        ({"temperature": 0.2}, {"weighted"}),
        ({"scorer_layers": 2}, {"scorer", "filtered", "weighted"}),
        ({"similarity_weight": 0.3}, {"scorer", "filtered", "weighted"}),
        ({"text_layers": 2}, {"all", "filtered", "weighted"}),
        ({"scenes": 100}, set(ROLES)),
    ]
    for change, others in changes:
        changed = dataclasses.replace(design, **change)
        assert {role for role in ROLES if changed.key(role) != design.key(role)} == others


def test_scores_come_before_the_trainings_that_use_them() -> None:
    jobs = plan_jobs(range(8))
    assert len(jobs) == 8 * (1 + len(RATES) * len(ROLES)) == len(set(jobs))
    for position, job in enumerate(jobs):
        assert set(job.prerequisites()) <= set(jobs[:position])


@pytest.mark.slow
def test_arms_have_equal_images_steps_and_seeds_and_differ_in_their_texts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the scheduler's processes work
    study, results = ".", {}
    for job in (ImagesJob(50), *(CellJob(50, 0.4, role) for role in ROLES)):
        assert not job.is_done(study, SMALL)
        job.run(study, SMALL)
        assert job.is_done(study, SMALL)
        if isinstance(job, CellJob):
            results[job.role] = json.loads(Path(result_url(study, SMALL, job)).read_text())
    assert {(each["steps"], each["seed"], each["rate"]) for role, each in results.items() if role in ARMS} == {
        (3, 50, 0.4)
    }
    figures = results["scorer"]["figures"]
    assert all(0 <= figures[f"auc.{scorer}.{kind}"] <= 1 for scorer in SCORERS for kind in ("all", "statements"))
    assert figures["wrong.statements"] == pytest.approx(40, abs=8)
    assert results["filtered"]["figures"]["kept"] == pytest.approx(80, abs=1)

    folders = {path.name.split("-")[0]: path for path in (data.folder(study, SMALL, 50) / "0.4").iterdir()}
    tables = {
        name: pq.read_table(open_dataset(str(folders[name])).shards[0].parquet_url) for name in ("all", "filtered")
    }
    scored = pq.read_table(open_dataset(str(folders["scored"])).shards[0].parquet_url).to_pylist()
    for plain, filtered, row in zip(*(table.to_pylist() for table in tables.values()), scored, strict=True):
        assert plain["sha256"] == filtered["sha256"] == row["sha256"]
        for writer in WRITERS:
            assert row[f"{writer}_sub"] == plain[f"{writer}_sub"]
            assert len(row[f"{writer}_sub_scores"]) == len(row[f"{writer}_sub"])
            kept = iter(plain[f"{writer}_sub"])
            assert all(piece in kept for piece in filtered[f"{writer}_sub"])  # some of them, in their order
    assert not any("_score" in name for name in tables["all"].column_names)


def _result(seed: int, rate: float, role: str, recall: float, **figures: float | None) -> dict:
    names = ("person.t2i.R@1", "person.i2t.R@1", "sharegpt4v.t2i.R@1", "sharegpt4v.i2t.R@1")
    figures |= dict.fromkeys(names, recall)
    key = ScoresDesign().key(role)
    return {"key": key, "seed": seed, "rate": rate, "role": role, "figures": figures, "seconds": 36.0}


def _results(gains: dict[str, list[float]]) -> list[dict]:
    """Results at 20% errors: R@1 of `all` is 10 + seed, the other arms gain so much per seed."""
    aucs = {f"auc.{scorer}.{kind}": 0.9 for scorer in SCORERS for kind in ("all", "statements")}
    aucs |= {"auc.combined.all": 0.8, "auc.combined.statements": 0.88, "wrong.all": 15.0, "wrong.statements": 20.0}
    contents = []
    for seed in range(4):
        contents.append(_result(seed, 0.2, "scorer", 0.0, **aucs))
        contents.append(_result(seed, 0.2, "all", 10.0 + seed))
        contents += [_result(seed, 0.2, arm, 10.0 + seed + values[seed]) for arm, values in gains.items()]
    return contents


def test_the_page_says_what_gains_what_loses_and_what_the_noise_hides() -> None:
    contents = _results({"filtered": [3.0, 4.0, 3.0, 4.0], "weighted": [-2.0, 3.0, -1.0, 1.0]})
    page = render_page(ScoresResults(contents, ScoresDesign()), ScoresDesign(), 8)
    assert (
        "Not all trainings have run yet: 16 of 128 (8 seeds × 4 error rates × (3 arms and a scorer)), 0.2 hours" in page
    )
    assert "| 20% | 4 | 11.5 ± 1.3 | 15.0 ± 1.6 | 11.8 ± 2.9 | +3.5 [+2.6, +4.4] | +0.2 [-3.3, +3.8] |" in page
    assert "`filtered` against `all`: it gains outside the noise at 20% errors (+3.5 [+2.6, +4.4])." in page
    assert "`weighted` against `all`: it shows no difference beyond the noise at 20% errors" in page
    assert (
        "AUC of 0.880 for statements, at or above the target of 0.85, and of 0.800 for all sub-captions, below" in page
    )
    assert "For statements similarity alone is better, by 0.020." in page


def test_results_of_development_seeds_and_of_other_designs_are_not_shown() -> None:
    contents = _results({"filtered": [0.0] * 4, "weighted": [0.0] * 4})
    others = [contents[0] | {"seed": 50}, contents[0] | {"key": "0" * 12}]
    results = ScoresResults([*others, *contents], ScoresDesign())
    assert len(results.contents) == 16 and results.values("all", 0.2, "long") == {0: 10, 1: 11, 2: 12, 3: 13}


def test_equal_results_give_equal_pages_and_a_page_is_rebuilt_from_its_results(tmp_path: Path) -> None:
    results = ScoresResults(_results({"filtered": [1.0, 2.0, 3.0, 4.0]}), ScoresDesign())
    write_page(results, ScoresDesign(), 8, str(tmp_path / "a"))
    rebuild_scores_page(str(tmp_path / "a" / "study" / "scores.jsonl"), str(tmp_path / "b"), 8)
    files = [{path.name: path.read_bytes() for path in (tmp_path / each / "study").iterdir()} for each in "ab"]
    assert files[0] == files[1] and set(files[0]) == {
        "scores.md",
        "scores.jsonl",
        "scores-detection.svg",
        "scores-gain.svg",
    }


def test_results_of_another_study_or_damaged_ones_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(json.dumps(_result(0, 0.2, "all", 1.0) | {"key": "0" * 12}))
    with pytest.raises(UserError, match="belong to other seeds or to a study with other settings"):
        rebuild_scores_page(str(file), str(tmp_path), 8)
    file.write_text('{"key": 1}')
    with pytest.raises(UserError, match=r"scores.jsonl, line 1: .*study-scores"):
        rebuild_scores_page(str(file), str(tmp_path), 8)
    with pytest.raises(UserError, match="cannot read the results"):
        rebuild_scores_page(str(tmp_path / "none.jsonl"), str(tmp_path), 8)


def test_the_committed_page_is_that_of_the_committed_results(tmp_path: Path) -> None:
    docs = ROOT / "docs" / "study"
    rebuild_scores_page(str(docs / "scores.jsonl"), str(tmp_path), 8)
    for name in ("scores.md", "scores.jsonl"):
        assert (tmp_path / "study" / name).read_text() == (docs / name).read_text()
