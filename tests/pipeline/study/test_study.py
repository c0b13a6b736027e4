"""The reproduction study: experiments cover the paper's tables, seeds are paired, the page is correct."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from scipy import stats  # imagehash's

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.study import data, experiments
from lotlip_data.pipeline.study.experiments import (
    EXPERIMENTS,
    LIT,
    LIT_LONG,
    LOTLIP,
    SETTINGS,
    Design,
    Experiment,
    Gallery,
    distinct_experiments,
    with_sub_captions,
    with_token_limit,
)
from lotlip_data.pipeline.study.jobs import DataJob, TrainingJob, plan_jobs, result_url
from lotlip_data.pipeline.study.main import rebuild_page, run_study
from lotlip_data.pipeline.study.paper_claims import COMMON_METRICS, LEVEL_POINTS, TABLES
from lotlip_data.pipeline.study.plots import plot
from lotlip_data.pipeline.study.report import METRIC_NAMES, render_page, write_page
from lotlip_data.pipeline.study.results import CEILINGS, METRICS, Results, format_text, read_lines
from lotlip_data.pipeline.study.significance import T_95, Difference, Verdict, mean_difference
from lotlip_data.synthetic.hard_scenes import crowded_scene
from lotlip_data.training.data.dataset import open_dataset
from tests.support.paths import ROOT

DESIGN = Design()
SMALL = Design(
    settings=SETTINGS | {"epochs": 1, "batch": 16, "warm_up": 1, "checkpoint_every": 1},
    from_scratch={"epochs": 0.2, "warm_up": 1},
    scenes=48,
    gallery=Gallery(groups=4, twins=3, short=8, classified=8),
)


def test_every_table_and_figure_has_its_experiments() -> None:
    """What the paper varies, value by value."""
    assert set(EXPERIMENTS) == {f"table-{n}" for n in (2, 3, 7, 8, 9, 10, 11)} | {f"figure-{n}" for n in (2, 4, 5)}
    configs = {name: [each.config(DESIGN, 0) for each in group] for name, group in EXPERIMENTS.items()}
    assert [config.method for config in configs["table-2"]] == ["lit", "lit_long", "lit_longclip", "lotlip"]
    assert [(config.corner_tokens, config.corner_mask) for config in configs["table-3"][1:]] == [
        *((count, True) for count in (1, 2, 3, 4)),
        (2, False),
    ]
    assert [config.method for config in configs["table-7"]] == ["lit_long", "register", "lotlip"]
    assert all(not (c.lock_image or c.pretrained_image or c.pretrained_text) for c in configs["table-8"])
    assert [(config.long_texts, config.corner_tokens) for config in configs["table-8"]] == [(0, 0), (1, 0), (1, 2)]
    assert {each.scale for each in EXPERIMENTS["table-8"]} == {10}
    single_captioners = [(name,) for name in ("instructblip", "llava", "sharegpt4v")]
    assert [config.captioners for config in configs["table-9"]] == [*single_captioners, ()]
    scales = [(each.method, each.scale) for each in EXPERIMENTS["table-10"]]
    assert scales == [(method, scale) for scale in (1, 3, 10) for method in ("lit", "lotlip")]
    assert EXPERIMENTS["table-10"] == EXPERIMENTS["table-11"]
    sub_captions = [0 if config.method == "lit" else config.sub_captions for config in configs["figure-5"]]
    assert sub_captions == [*range(7), *range(7)] and EXPERIMENTS["figure-2"] == EXPERIMENTS["figure-5"][:7]
    assert [config.context_length for config in configs["figure-4"]] == [32, 64, 77, 128, 192, 256, 256]
    assert {each.texts for each in EXPERIMENTS["figure-4"]} == {"detailed"}


def test_an_experiment_of_several_tables_is_one_training() -> None:
    with_lotlip = ("table-2", "table-3", "table-7", "table-9", "table-10", "figure-5")
    assert all(LOTLIP in EXPERIMENTS[name] for name in with_lotlip)
    assert all(LIT_LONG in EXPERIMENTS[name] for name in ("table-2", "table-3", "table-7", "figure-2"))
    assert EXPERIMENTS["figure-2"][0] == EXPERIMENTS["table-10"][0] == LIT
    assert with_token_limit(512) == with_token_limit(256)
    keys = [each.key(DESIGN) for each in distinct_experiments(EXPERIMENTS)]
    assert len(keys) == len(set(keys)) == 36


def test_a_key_depends_on_everything_that_an_experiment_computes_except_the_seed() -> None:
    others = [
        Design(settings=SETTINGS | {"lr": 5e-4}),
        Design(scenes=DESIGN.scenes + 3),
        Design(gallery=dataclasses.replace(DESIGN.gallery, groups=7)),
    ]
    assert len({LOTLIP.key(design) for design in (DESIGN, *others)}) == 4
    assert LOTLIP.config(DESIGN, 2).seed == 2


def test_experiments_from_scratch_have_their_own_settings() -> None:
    """All three have the same settings, and no other experiment has them."""
    other = Design(from_scratch=experiments.FROM_SCRATCH_SETTINGS | {"lr": 5e-4})
    changed = [each for each in distinct_experiments(EXPERIMENTS) if each.key(other) != each.key(DESIGN)]
    assert changed == list(EXPERIMENTS["table-8"])
    for config in (each.config(DESIGN, 0) for each in changed):
        settings = {name: getattr(config, name) for name in experiments.FROM_SCRATCH_SETTINGS}
        assert settings == experiments.FROM_SCRATCH_SETTINGS


def test_tables_show_their_experiments_and_claim_nothing_about_others() -> None:
    assert {table.name for table in TABLES} == set(EXPERIMENTS)
    for table in TABLES:
        assert [row.experiment for row in table.rows] == list(table.experiments)
        assert {each for claim in table.claims for each, _ in claim.weights} <= set(table.experiments)
        assert all(sum(weight for _, weight in claim.weights) == 0 for claim in table.claims)
        assert {claim.sign for claim in table.claims} <= {1, 0, -1}
        assert {claim.metric for claim in table.claims} <= set(table.metrics) <= set(METRICS)


def test_every_experiment_has_the_same_seeds_and_its_data_come_first() -> None:
    jobs = plan_jobs(distinct_experiments(EXPERIMENTS), range(3))
    trainings = [job for job in jobs if isinstance(job, TrainingJob)]
    assert len(trainings) == len(set(trainings)) == 3 * 36
    for position, job in enumerate(jobs):
        if isinstance(job, TrainingJob):
            assert DataJob(job.experiment.texts, job.seed) in jobs[:position]


def test_seeds_share_no_scenes_and_no_evaluation_scene_is_trained_on() -> None:
    blocks = [data.scene_seeds(seed) for seed in (0, 1, 2, data.FIRST_DEVELOPMENT_SEED)]
    assert all(len(block) == data.SCENES_PER_SEED for block in blocks)
    assert len({number for block in blocks for number in (block.start, block.stop - 1)}) == 8
    assert DESIGN.scenes * max(experiments.SCALES) <= data.TRAINING_SCENES_PER_SEED
    assert DESIGN.scenes % data.SHARDS_AT_SCALE_1 == 0


@pytest.mark.parametrize(
    "pairs, mean, half, above, below, level",
    [  # 2 ± 2.48, then 3 ± 2.48
        ([1.0, 2.0, 3.0], 2.0, 4.303 * 1.0 / 3**0.5, Verdict.LEANS, Verdict.LEANS_AWAY, Verdict.LEVEL),
        ([2.0, 3.0, 4.0], 3.0, 4.303 / 3**0.5, Verdict.HOLDS, Verdict.OPPOSITE, Verdict.UNEVEN),
        ([-2.0, -3.0, -4.0], -3.0, 4.303 / 3**0.5, Verdict.OPPOSITE, Verdict.HOLDS, Verdict.UNEVEN),
        ([-1.0, 1.0, -1.5], -0.5, 4.303 * 1.75**0.5 / 3**0.5, Verdict.LEANS_AWAY, Verdict.LEANS, Verdict.LEVEL),
        ([0.0, 0.0, 0.0], 0.0, 0.0, Verdict.LEANS_AWAY, Verdict.LEANS_AWAY, Verdict.LEVEL),
    ],
)
def test_verdicts_of_worked_examples(
    pairs: list[float], mean: float, half: float, above: Verdict, below: Verdict, level: Verdict
) -> None:
    """The verdicts if the paper has the difference above zero, below zero and level."""
    difference = mean_difference(pairs)
    assert difference is not None and [difference.verdict(sign) for sign in (1, -1, 0)] == [above, below, level]
    assert dataclasses.astuple(difference) == pytest.approx((mean, mean - half, mean + half, len(pairs)))


def test_the_quantiles_are_those_of_students_t() -> None:
    assert pytest.approx(list(T_95), abs=5e-4) == [stats.t.ppf(0.975, degrees) for degrees in range(1, len(T_95) + 1)]


def test_two_seeds_give_no_interval_and_too_many_are_rejected() -> None:
    """Figures come in steps, so two differences are often equal, and their interval would have no width."""
    assert mean_difference([]) is None and mean_difference([3.0]) is None and mean_difference([-4.6, -4.6]) is None
    with pytest.raises(ValueError, match="11 seeds"):
        mean_difference([1.0] * 11)


def make_result(experiment: Experiment, seed: int, value: float, design: Design = DESIGN) -> dict[str, Any]:
    """A result whose figures all equal `value`, with ceilings of 100."""
    names = {name for metric in METRICS.values() for name in metric}
    names |= {"short.t2i.R@5", "short.i2t.R@5", "unrelated.cut", "detailed.cut", "flops.text"}
    ceilings = dict.fromkeys((name for names in CEILINGS.values() for name in names), 100.0)
    figures = dict.fromkeys(sorted(names), value) | ceilings
    return {"key": experiment.key(design), "seed": seed, "texts": experiment.texts, "seconds": 9.0, "figures": figures}


def test_differences_are_taken_per_seed_where_both_experiments_have_run() -> None:
    """LoTLIP is 2 points better for each common seed. Seeds of one experiment alone differ much and do not count."""
    values = {(LOTLIP, seed): value for seed, value in enumerate((52.0, 12.0, 32.0, 99.0))}
    values |= {(LIT, seed): value for seed, value in ((0, 50.0), (1, 10.0), (2, 30.0), (4, 1.0))}
    contents = [make_result(each, seed, value) for (each, seed), value in values.items()]
    results = Results(contents, DESIGN)
    assert results.contrast({LOTLIP: 1.0, LIT: -1.0}, "long") == Difference(2.0, 2.0, 2.0, 3)
    assert results.contrast({LOTLIP: 1.0, LIT_LONG: -1.0}, "long") is None
    assert Results(contents, DESIGN, 2).contrast({LOTLIP: 1.0, LIT: -1.0}, "long") is None
    assert (
        Results(contents, DESIGN, 2).seeds(LOTLIP) == [0, 1]
        and Results(contents, DESIGN, 2).contents == results.contents
    )


def test_results_of_development_seeds_and_of_other_designs_are_excluded() -> None:
    contents = [
        make_result(LIT, data.FIRST_DEVELOPMENT_SEED, 1.0),
        make_result(LIT, 1, 1.0, Design(scenes=3)),
        make_result(LIT, 0, 2.0),
    ]
    assert Results(contents, DESIGN).values(LIT, "class") == {0: 2.0}


def random_results(group: list[Experiment]) -> Results:
    numbers = random.Random(0)
    return Results([make_result(each, seed, 10 + 80 * numbers.random()) for each in group for seed in range(3)], DESIGN)


def test_equal_results_give_an_equal_page_and_equal_plots_byte_for_byte(tmp_path: Path) -> None:
    results = random_results(distinct_experiments(EXPERIMENTS))
    write_page(results, DESIGN, 3, str(tmp_path / "a"))
    again = Results(read_lines(str(tmp_path / "a/study/results.jsonl"), DESIGN), DESIGN)
    write_page(again, DESIGN, 3, str(tmp_path / "b"))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 + len(TABLES) and format_text(again.contents) == format_text(results.contents)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    page = (tmp_path / "a/study/index.md").read_text()
    assert "All trainings have run: 108 of 108 (" in page and "not run yet" not in page
    for table in TABLES:
        assert page.count(f"## {table.title}\n") == 1 and f"({table.name}.svg)" in page
    assert page.count("**Does it hold here?**") == len(TABLES)


def test_the_page_shows_what_has_not_run() -> None:
    page = render_page(random_results(list(EXPERIMENTS["table-2"])), DESIGN, 3)
    assert "**Not all trainings have run**: 12 of 108 (" in page
    two, three = (page.split("## Table ")[number] for number in (1, 2))
    assert "not run yet" not in two and "not run yet" in three and "| m = 4 | – | – |" in three
    empty = Results([], DESIGN)
    assert "0.2 epochs, batch 16," in render_page(empty, SMALL, 3), "`from_scratch` replaces only the settings it names"
    assert "0 of 108" in render_page(empty, DESIGN, 3) and all(
        plot(table, empty).startswith("<?xml") for table in TABLES
    )


def test_rows_that_are_all_at_chance_show_nothing_however_regular_their_difference() -> None:
    """With 1,000 scenes and 64 classes, 1.0 is less than a point above chance for one metric; 3.0 is above for both."""
    table = next(table for table in TABLES if table.name == "table-8")
    low = {each: 0.3 + 0.2 * position for position, each in enumerate(EXPERIMENTS["table-8"])}
    at_chance = Results([make_result(each, seed, value) for each, value in low.items() for seed in range(3)], DESIGN)
    assert all(at_chance.at_chance(dict(claim.weights), claim.metric) for claim in table.claims)
    page = render_page(at_chance, DESIGN, 3).split("## Table 8")[1].split("\n## ")[0]
    assert page.count("inconclusive: all rows are at chance") == len(table.claims) and "holds outside" not in page
    one_above = low | {EXPERIMENTS["table-8"][0]: 3.0}
    above = Results([make_result(each, seed, value) for each, value in one_above.items() for seed in range(3)], DESIGN)
    conclusive = [not above.at_chance(dict(claim.weights), claim.metric) for claim in table.claims]
    assert conclusive == [EXPERIMENTS["table-8"][0] in dict(claim.weights) for claim in table.claims]


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    """Fails if a setting, a default or a word of the page changes, or if a result belongs to another study."""
    folder = ROOT / "docs" / "study"
    results = Results(read_lines(str(folder / "results.jsonl"), DESIGN), DESIGN, 4)
    assert results.excluded == 0 and len(results.contents) == 4 * 36
    assert render_page(results, DESIGN, 4) == (folder / "index.md").read_text()


def test_the_towers_are_those_of_the_data_version() -> None:
    """New tower weights need new DATA_VERSIONS: neither a result's key nor a data folder depends on the weights."""
    from lotlip_data.manifests.checkpoints.resolve import resolve

    digests = {}
    for name in ("image_tower", "text_tower"):
        weights = Path(resolve(SETTINGS[name]), "model.safetensors").read_bytes()
        digests[name] = hashlib.sha256(weights).hexdigest()[:16]
    assert digests == {"image_tower": "67f6b685569861eb", "text_tower": "63212c6763fe9373"}
    assert experiments.DATA_VERSIONS == {"captioners": 1, "detailed": 2}


def test_a_claim_that_several_tables_share_is_counted_once() -> None:
    """Tables 2, 3 and 7 all compare LoTLIP with LiT with long texts."""
    claims = [claim for table in TABLES for claim in table.claims]
    lead = {LOTLIP: 1.0, LIT_LONG: -1.0}
    shared = [claim.text for claim in claims if dict(claim.weights) == lead and claim.metric == "long"]
    assert shared == ["LoTLIP vs. LiT + long texts", "m = 2 vs. m = 0", "corner tokens vs. neither"]
    assert len(claims) - len({claim.comparison for claim in claims}) == 2 * len(COMMON_METRICS)


def test_rows_that_the_paper_prints_less_than_half_a_point_apart_are_level() -> None:
    for claim in (claim for table in TABLES for claim in table.claims if claim.printed is not None):
        assert claim.sign == (abs(claim.printed) >= LEVEL_POINTS) * (1 if claim.printed > 0 else -1)


def results_with_spread(spread: Experiment, low: float, rest: float) -> Results:
    """Three seeds per experiment: 30, 31 and 32; for `spread` they are `rest`, `low` and `rest`."""
    others = [each for each in distinct_experiments(EXPERIMENTS) if each != spread]
    contents = [make_result(each, seed, 30.0 + seed) for each in others for seed in range(3)]
    contents += [make_result(spread, seed, low if seed == 1 else rest) for seed in range(3)]
    return Results(contents, DESIGN)


def test_a_row_whose_seeds_are_far_apart_is_marked_in_every_comparison() -> None:
    """Far apart: by more than a factor of two and more than ten points. The values per seed are below the table."""
    scratch = EXPERIMENTS["table-8"][2]
    page = render_page(results_with_spread(scratch, 4.0, 20.0), DESIGN, 3)
    eight = page.split("## Table 8")[1].split("\n## ")[0]
    assert eight.count("noise† |") == 3
    assert "† Seeds far apart. LoTLIP, both towers, long texts: 20.0, 4.0, 20.0;" in eight
    assert page.count("† |") == 3 and "3 of them rest on rows whose seeds are far apart (†)" in page
    for low, rest in ((10.0, 20.0), (1.0, 11.0)):
        results = render_page(results_with_spread(scratch, low, rest), DESIGN, 3).split("## How verdicts are decided")[
            0
        ]
        assert "†" not in results


def test_a_claim_about_a_loss_is_not_applicable_where_nothing_is_lost() -> None:
    five = next(table for table in TABLES if table.name == "figure-5")
    fewest, most = (with_sub_captions("lit_long", count) for count in (1, 6))
    assert [claim.metric for claim in five.claims if claim.requires] == ["short", "class"]
    for lost in (True, False):
        values = {fewest: 40.0, most: 20.0 if lost else 60.0}
        contents = [
            make_result(each, seed, values.get(each, 30.0) + seed) for each in five.experiments for seed in range(3)
        ]
        page = render_page(Results(contents, DESIGN), DESIGN, 3).split("## Figure 5")[1].split("\n## ")[0]
        assert page.count(Verdict.MOOT) == (0 if lost else 2)


@pytest.mark.parametrize(
    "ceiling, verdict",
    [(70.0, Verdict.CEILING), (80.0, Verdict.CEILING), (80.1, Verdict.HOLDS), (100.0, Verdict.HOLDS)],
)
@pytest.mark.parametrize("metric", CEILINGS)
def test_a_rise_that_is_no_larger_than_the_rise_of_its_ceiling_is_inconclusive(
    metric: str, ceiling: float, verdict: Verdict
) -> None:
    """64 tokens are 20 points above 32, and the highest possible value rises from `ceiling` to 100."""
    low, high = with_token_limit(32), with_token_limit(64)
    contents = [
        make_result(each, seed, {low: 30.0, high: 50.0}.get(each, 50.0) + seed)
        for each in EXPERIMENTS["figure-4"]
        for seed in range(3)
    ]
    for content in contents:
        if content["key"] == low.key(DESIGN):
            content["figures"] |= dict.fromkeys(CEILINGS[metric], ceiling)
    page = render_page(Results(contents, DESIGN), DESIGN, 3).split("## Figure 4")[1]
    start = f"| 64 tokens vs. 32 | {METRIC_NAMES[metric]} |"
    line = next(line for line in page.splitlines() if line.startswith(start))
    assert line.endswith(f"| +20.0 [+20.0, +20.0] | {verdict} |")
    assert page.count(Verdict.CEILING) == (verdict is Verdict.CEILING)


def test_of_equal_texts_one_finds_its_image_and_none_is_found(tmp_path: Path) -> None:
    """Two of five texts are equal when truncated to 16 tokens: four different texts, three of them unique."""
    from lotlip_data.pipeline.study.metrics import recall_ceiling
    from lotlip_data.training.models.lotlip import load_model

    config = experiments.experiment("lotlip", context_length=16).config(DESIGN, 0)
    load_model(config).save(str(tmp_path / "model"))
    start = "a red circle and a blue square stand on the grass under a small tree "
    texts = [start + "with fruit", start + "without fruit", "a red circle", "a blue circle", "a green circle"]
    assert recall_ceiling(str(tmp_path / "model"), texts) == {"t2i": 80.0, "i2t": 60.0}


def test_each_token_limit_has_its_own_flops_even_if_trainings_are_shared() -> None:
    """512 is the training of 256, because no text is longer. Padded to 512 tokens, a text costs more."""
    results = random_results(list(EXPERIMENTS["figure-4"]))
    assert with_token_limit(512) == with_token_limit(256)
    lines = render_page(results, DESIGN, 3).splitlines()
    rows = [
        next(line for line in lines if line.startswith(f"| {limit} tokens |")) for limit in experiments.TOKEN_LIMITS
    ]
    flops = [float(row.split(" | ")[-2]) for row in rows]
    assert flops == sorted(set(flops)) == pytest.approx(list(results.padded_flops.values()), abs=0.05)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1}', "the field `key` is missing"),
        ('{"key": "x", "seed": "0"}', "the field `seed` is wrong"),
        ('{"key": "04670a', "not JSON"),
        ("", "not JSON"),
        (f'{{"key": "{LIT.key(DESIGN)}", "seed": 0, "figures": {{}}}}', "its figure 'person.t2i.R@1' is missing"),
        ('{"key": "x", "seed": 0, "figures": {}, "seconds": "9"}', "the field `seconds` is wrong"),
    ],
)
def test_a_damaged_result_is_reported_before_any_training(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(make_result(LIT, 0, 1.0))
    (tmp_path / "some.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match=rf"some\.jsonl, line 2: .*{message}"):
        read_lines(str(tmp_path / "some.jsonl"), DESIGN)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a-0.json").write_text(line)
    with pytest.raises(UserError, match=rf"results/a-0\.json: .*{message}.*repeats this training"):
        run_study(str(tmp_path), str(tmp_path), None, [], 3, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"some.jsonl", "results"}


def test_results_of_another_study_make_no_empty_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other.jsonl").write_text(format_text([make_result(LIT, 0, 1.0, Design(scenes=3))]))
    with pytest.raises(UserError, match=r"all of its 1 results belong to a study with other settings"):
        rebuild_page(str(tmp_path / "other.jsonl"), str(tmp_path), 3)
    with pytest.raises(UserError, match="cannot read the results of a study"):
        read_lines(str(tmp_path / "missing.jsonl"), DESIGN)
    other = make_result(LIT, 0, 1.0, Design(scenes=3)) | {"figures": {"of another evaluation": 1.0}}
    (tmp_path / "both.jsonl").write_text(format_text([other, make_result(LIT, 0, 1.0)]))
    caplog.clear()
    rebuild_page(str(tmp_path / "both.jsonl"), str(tmp_path), 3)
    assert caplog.messages[0] == "study: 1 results with other settings, data or evaluation are excluded"


def test_another_design_has_other_data(tmp_path: Path) -> None:
    small = dataclasses.replace(SMALL, scenes=6)
    assert data.dataset_path("x", small, LIT, 0) != data.dataset_path("x", SMALL, LIT, 0)
    data.write_datasets(str(tmp_path), small, "detailed", 1)
    assert data.is_written(str(tmp_path), small, "detailed", 1)
    assert not data.is_written(str(tmp_path), SMALL, "detailed", 1)


def test_an_unknown_table_is_rejected_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the study has no table-4; choose from table-2, table-3"):
        run_study(str(tmp_path), str(tmp_path), 0, ["table-4"], 3, 1)


def test_an_evaluation_set_has_near_twins_with_one_text_each() -> None:
    sets, classes = data.evaluation_sets(1, "captioners", SMALL.gallery)
    assert [each.name for each in sets] == ["person", "sharegpt4v", "short"]
    assert [len(each.pictures) for each in sets] == [len(set(each.texts)) for each in sets] == [16, 16, 8]
    assert sets[0].pictures is sets[1].pictures and len(classes.pictures) == len(classes.labels) == 8
    detailed, salient = data.evaluation_sets(1, "detailed", SMALL.gallery)
    assert [each.name for each in detailed] == ["detailed", "unrelated", "short"]
    assert detailed[2].texts == sets[2].texts and salient.labels == classes.labels
    twins, unrelated = detailed[0].texts, detailed[1].texts
    assert len(twins) == len(set(unrelated)) == len(detailed[1].pictures) == 16 and not set(twins) & set(unrelated)
    assert len({text[:200] for text in unrelated}) == 16 > len({text[:200] for text in twins})


def test_the_datasets_of_a_seed_are_nested_and_written_once(tmp_path: Path) -> None:
    """The smaller scales are the first samples of the larger ones, with features. A second call changes nothing."""
    small = dataclasses.replace(SMALL, scenes=6)
    data.write_datasets(str(tmp_path), small, "captioners", 1)
    datasets = {
        scale: open_dataset(data.dataset_path(str(tmp_path), small, experiments.at_scale("lit", scale), 1))
        for scale in experiments.SCALES
    }
    assert {scale: dataset.samples for scale, dataset in datasets.items()} == {1: 6, 3: 18, 10: 60}
    largest = [shard.sha256 for shard in datasets[10].shards]
    for dataset in datasets.values():
        assert [shard.sha256 for shard in dataset.shards] == largest[: len(dataset.shards)]
        assert len(list(Path(dataset.url, "features").rglob("*.npz"))) >= len(dataset.shards)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".tar", ".npz")}
    data.write_datasets(str(tmp_path), small, "captioners", 1)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_training_scenes_are_those_of_the_study_seed() -> None:
    seed = data.scene_seeds(2)[5]
    row, _ = data._sample(seed, "000000005", ("detailed",))
    assert row["url"].endswith(f"/{seed}.jpg")
    assert len(row["detailed_sub"]) == 7 + 2 * len(crowded_scene(seed).objects)


def test_text_flops_follow_the_formula(tmp_path: Path) -> None:
    """Per layer and token 24 d² and 4 L d; pooler and projection of each kept token, and BERT's own pooler."""
    from lotlip_data.pipeline.study.metrics import mean_text_flops, padded_flops
    from lotlip_data.training.models.lotlip import load_model

    config = with_token_limit(64).config(DESIGN, 0)
    model = load_model(config)
    model.save(str(tmp_path / "model"))
    texts = ["A red ring.", "A small blue heart is at the top left. A star."]
    lengths = [len(ids) for ids in model.tokenizer.encode(texts).ids]

    def formula(length: int, d: int = 128, layers: int = 3, heads: int = 3) -> float:
        return (layers * (24 * d**2 * length + 4 * length**2 * d) + (heads * 4 + 2) * d**2) / 1e6

    assert padded_flops(config, (64, 512)) == pytest.approx({64: formula(64), 512: formula(512)}, rel=1e-9)
    assert mean_text_flops(str(tmp_path / "model"), texts) == pytest.approx(sum(map(formula, lengths)) / 2, rel=1e-9)


@pytest.mark.slow
def test_a_small_study_that_is_stopped_again_and_again_resumes(tmp_path: Path) -> None:
    """Every training ends with one result, and another run changes nothing."""
    folder, out, only = str(tmp_path / "study"), str(tmp_path / "docs"), ["table-2", "table-8", "figure-4"]
    minutes, left = 0.3, 1
    while left:
        summary = run_study(folder, out, minutes, only, 3, 2, SMALL)
        assert not summary.failed
        minutes, left = 2 * minutes, summary.left  # on a slow machine, starting may take all of the first runs
    results = {path.name: path.read_bytes() for path in (tmp_path / "study/results").iterdir()}
    jobs = [TrainingJob(each, seed) for each in distinct_experiments(only) for seed in range(3)]
    assert set(results) == {Path(result_url("", job.name(SMALL))).name for job in jobs}
    assert not list((tmp_path / "study/work").iterdir())
    assert run_study(folder, out, None, only, 3, 2, SMALL).done == 0
    assert results == {path.name: path.read_bytes() for path in (tmp_path / "study/results").iterdir()}
    page = (tmp_path / "docs/study/index.md").read_text()
    two = page.split("## Table 2")[1].split("## Table 3")[0]
    assert "not run yet" not in two and "| LoTLIP | 3 |" in two
