"""The reproduction study: rows cover the paper's tables and are shared, seeds are paired, the page is true."""

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
from lotlip_data.pipeline.study.experiments import LIT, LIT_LONG, LOTLIP, ROWS, SETTINGS, Design, Gallery, distinct
from lotlip_data.pipeline.study.jobs import Data, Training, all_of, result_of
from lotlip_data.pipeline.study.main import study, write_again
from lotlip_data.pipeline.study.paper_claims import EVERY, LEVEL, TABLES
from lotlip_data.pipeline.study.plots import plot
from lotlip_data.pipeline.study.report import NAMES, render, write_page
from lotlip_data.pipeline.study.results import CEILINGS, METRICS, Results, format_text, read_lines
from lotlip_data.pipeline.study.significance import T_95, Difference, Verdict, difference
from lotlip_data.synthetic.hard_scenes import crowded_scene
from lotlip_data.training.data.dataset import open_dataset
from tests.support.paths import ROOT

DESIGN = Design()
SMALL = Design(
    settings=SETTINGS | {"epochs": 1, "batch": 16, "warm_up": 1, "checkpoint_every": 1},
    fresh={"epochs": 0.2, "warm_up": 1},
    scenes=48,
    gallery=Gallery(groups=4, twins=3, short=8, classified=8),
)


def test_every_table_and_figure_has_its_rows() -> None:
    """What the paper varies, value by value."""
    assert set(ROWS) == {f"table-{n}" for n in (2, 3, 7, 8, 9, 10, 11)} | {f"figure-{n}" for n in (2, 4, 5)}
    configs = {name: [row.config(DESIGN, 0) for row in of] for name, of in ROWS.items()}
    assert [one.method for one in configs["table-2"]] == ["lit", "lit_long", "lit_longclip", "lotlip"]
    assert [(one.corner_tokens, one.corner_mask) for one in configs["table-3"][1:]] == [
        *((count, True) for count in (1, 2, 3, 4)),
        (2, False),
    ]
    assert [one.method for one in configs["table-7"]] == ["lit_long", "register", "lotlip"]
    assert all(not (one.lock_image or one.pretrained_image or one.pretrained_text) for one in configs["table-8"])
    assert [(one.long_texts, one.corner_tokens) for one in configs["table-8"]] == [(0, 0), (1, 0), (1, 2)]
    assert {row.scale for row in ROWS["table-8"]} == {10}
    alone = [(name,) for name in ("instructblip", "llava", "sharegpt4v")]
    assert [one.captioners for one in configs["table-9"]] == [*alone, ()]
    scales = [(row.method, row.scale) for row in ROWS["table-10"]]
    assert scales == [(method, scale) for scale in (1, 3, 10) for method in ("lit", "lotlip")]
    assert ROWS["table-10"] == ROWS["table-11"]
    shown = [0 if one.method == "lit" else one.sub_captions for one in configs["figure-5"]]
    assert shown == [*range(7), *range(7)] and ROWS["figure-2"] == ROWS["figure-5"][:7]
    assert [one.context_length for one in configs["figure-4"]] == [32, 64, 77, 128, 192, 256, 256]
    assert {row.texts for row in ROWS["figure-4"]} == {"detailed"}


def test_a_row_of_several_tables_is_one_training() -> None:
    assert all(LOTLIP in ROWS[name] for name in ("table-2", "table-3", "table-7", "table-9", "table-10", "figure-5"))
    assert all(LIT_LONG in ROWS[name] for name in ("table-2", "table-3", "table-7", "figure-2"))
    assert ROWS["figure-2"][0] == ROWS["table-10"][0] == LIT
    assert experiments.limited(512) == experiments.limited(256)
    keys = [row.key(DESIGN) for row in distinct(ROWS)]
    assert len(keys) == len(set(keys)) == 36


def test_a_row_is_known_by_everything_that_it_computes_but_the_seed() -> None:
    others = [
        Design(settings=SETTINGS | {"lr": 5e-4}),
        Design(scenes=DESIGN.scenes + 3),
        Design(gallery=dataclasses.replace(DESIGN.gallery, groups=7)),
    ]
    assert len({LOTLIP.key(design) for design in (DESIGN, *others)}) == 4
    assert LOTLIP.config(DESIGN, 2).seed == 2


def test_rows_from_fresh_weights_have_settings_of_their_own() -> None:
    """All three the same ones, and no other row has them."""
    other = Design(fresh=experiments.FRESH | {"lr": 5e-4})
    moved = [row for row in distinct(ROWS) if row.key(other) != row.key(DESIGN)]
    assert moved == list(ROWS["table-8"])
    for one in (row.config(DESIGN, 0) for row in moved):
        assert {name: getattr(one, name) for name in experiments.FRESH} == experiments.FRESH


def test_tables_show_their_rows_and_claim_nothing_of_others() -> None:
    assert {table.name for table in TABLES} == set(ROWS)
    for table in TABLES:
        assert [line.row for line in table.lines] == list(table.rows)
        assert {row for claim in table.claims for row, _ in claim.weights} <= set(table.rows)
        assert all(sum(weight for _, weight in claim.weights) == 0 for claim in table.claims)
        assert {claim.sign for claim in table.claims} <= {1, 0, -1}
        assert {claim.metric for claim in table.claims} <= set(table.metrics) <= set(METRICS)


def test_every_row_has_the_same_seeds_and_its_data_first() -> None:
    tasks = all_of(distinct(ROWS), range(3))
    trainings = [task for task in tasks if isinstance(task, Training)]
    assert len(trainings) == len(set(trainings)) == 3 * 36
    for place, task in enumerate(tasks):
        if isinstance(task, Training):
            assert Data(task.row.texts, task.seed) in tasks[:place]


def test_seeds_never_share_scenes_nor_are_trained_on_what_is_evaluated_on() -> None:
    blocks = [data.block(seed) for seed in (0, 1, 2, data.DEVELOPMENT)]
    assert all(len(block) == data.BLOCK for block in blocks)
    assert len({number for block in blocks for number in (block.start, block.stop - 1)}) == 8
    assert DESIGN.scenes * max(experiments.SCALES) <= data.EVALUATED and DESIGN.scenes % data.SHARDS == 0


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
def test_the_rule_on_worked_examples(
    pairs: list[float], mean: float, half: float, above: Verdict, below: Verdict, level: Verdict
) -> None:
    """The verdict where the paper has the difference above nought, below it, and level."""
    found = difference(pairs)
    assert found is not None and [found.verdict(sign) for sign in (1, -1, 0)] == [above, below, level]
    assert dataclasses.astuple(found) == pytest.approx((mean, mean - half, mean + half, len(pairs)))


def test_the_table_of_t_is_students() -> None:
    assert pytest.approx(list(T_95), abs=5e-4) == [stats.t.ppf(0.975, degrees) for degrees in range(1, len(T_95) + 1)]


def test_two_seeds_say_nothing_and_too_many_are_refused() -> None:
    """Two differences are often equal, as figures come in steps, and would have an interval of no width."""
    assert difference([]) is None and difference([3.0]) is None and difference([-4.6, -4.6]) is None
    with pytest.raises(ValueError, match="11 seeds"):
        difference([1.0] * 11)


def content(row: experiments.Experiment, seed: int, value: float, design: Design = DESIGN) -> dict[str, Any]:
    names = {name for metric in METRICS.values() for name in metric}
    names |= {"short.t2i.R@5", "short.i2t.R@5", "unrelated.cut", "detailed.cut", "flops.text"}
    known = {"key": row.key(design), "seed": seed, "texts": row.texts, "seconds": 9.0}
    most = dict.fromkeys((name for names in CEILINGS.values() for name in names), 100.0)
    return known | {"figures": dict.fromkeys(sorted(names), value) | most}


def test_differences_are_taken_seed_by_seed_where_both_have_run() -> None:
    """LoTLIP is ahead by 2 in each common seed; the seeds of one alone, which differ much, do not count."""
    values = {(LOTLIP, seed): value for seed, value in enumerate((52.0, 12.0, 32.0, 99.0))}
    values |= {(LIT, seed): value for seed, value in ((0, 50.0), (1, 10.0), (2, 30.0), (4, 1.0))}
    every = [content(row, seed, value) for (row, seed), value in values.items()]
    results = Results(every, DESIGN)
    assert results.contrast({LOTLIP: 1.0, LIT: -1.0}, "long") == Difference(2.0, 2.0, 2.0, 3)
    assert results.contrast({LOTLIP: 1.0, LIT_LONG: -1.0}, "long") is None
    assert Results(every, DESIGN, 2).contrast({LOTLIP: 1.0, LIT: -1.0}, "long") is None
    assert Results(every, DESIGN, 2).seeds(LOTLIP) == [0, 1] and Results(every, DESIGN, 2).contents == results.contents


def test_results_of_development_seeds_and_of_other_designs_are_not_shown() -> None:
    there = [content(LIT, data.DEVELOPMENT, 1.0), content(LIT, 1, 1.0, Design(scenes=3)), content(LIT, 0, 2.0)]
    assert Results(there, DESIGN).values(LIT, "class") == {0: 2.0}


def fabricated(shown: list[experiments.Experiment]) -> Results:
    numbers = random.Random(0)
    return Results([content(row, seed, 10 + 80 * numbers.random()) for row in shown for seed in range(3)], DESIGN)


def test_the_page_of_the_same_results_is_the_same_to_the_byte(tmp_path: Path) -> None:
    results = fabricated(distinct(ROWS))
    write_page(results, DESIGN, 3, str(tmp_path / "a"))
    again = Results(read_lines(str(tmp_path / "a/study/results.jsonl"), DESIGN), DESIGN)
    write_page(again, DESIGN, 3, str(tmp_path / "b"))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 + len(TABLES) and format_text(again.contents) == format_text(results.contents)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    page = (tmp_path / "a/study/index.md").read_text()
    assert "All of it has run: 108 of 108 trainings" in page and "not run yet" not in page
    for table in TABLES:
        assert page.count(f"## {table.title}\n") == 1 and f"]({table.name}.svg)" in page
    assert page.count("**Does it hold here?**") == len(TABLES)


def test_the_page_says_what_has_not_run() -> None:
    page = render(fabricated(list(ROWS["table-2"])), DESIGN, 3)
    assert "**Not all of it has run**: 12 of 108 trainings" in page
    two, three = (page.split("## Table ")[number] for number in (1, 2))
    assert "not run yet" not in two and "not run yet" in three and "| m = 4 | – | – |" in three
    empty = Results([], DESIGN)
    assert "0.2 epochs, batch 16," in render(empty, SMALL, 3), "what `fresh` does not name is as in all rows"
    assert "0 of 108" in render(empty, DESIGN, 3) and all(plot(table, empty).startswith("<?xml") for table in TABLES)


def test_rows_that_are_all_at_chance_tell_nothing_however_regular_their_difference() -> None:
    """1,000 scenes and 64 classes: 1.0 is chance of neither within a point, 3.0 is above both."""
    table = next(table for table in TABLES if table.name == "table-8")
    low = {row: 0.3 + 0.2 * place for place, row in enumerate(ROWS["table-8"])}
    at_chance = Results([content(row, seed, value) for row, value in low.items() for seed in range(3)], DESIGN)
    assert all(at_chance.at_chance(dict(claim.weights), claim.metric) for claim in table.claims)
    page = render(at_chance, DESIGN, 3).split("## Table 8")[1].split("\n## ")[0]
    assert page.count("cannot be told, all at chance") == len(table.claims) and "holds outside" not in page
    one_above = low | {ROWS["table-8"][0]: 3.0}
    above = Results([content(row, seed, value) for row, value in one_above.items() for seed in range(3)], DESIGN)
    told = [not above.at_chance(dict(claim.weights), claim.metric) for claim in table.claims]
    assert told == [ROWS["table-8"][0] in dict(claim.weights) for claim in table.claims]


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    """A setting, a default or a word of the page that changes is seen here; so is a result that is of another study."""
    docs = ROOT / "docs"
    results = Results(read_lines(str(docs / "study/results.jsonl"), DESIGN), DESIGN, 4)
    assert results.left_out == 0 and len(results.contents) == 4 * 36
    assert render(results, DESIGN, 4) == (docs / "study/index.md").read_text()


def test_the_towers_are_those_of_this_edition() -> None:
    """Whoever trains them anew raises EDITIONS: no key and no folder of data knows their weights."""
    from lotlip_data.manifests.checkpoints.resolve import resolve

    found = {
        name: hashlib.sha256(Path(resolve(experiments.SETTINGS[name]), "model.safetensors").read_bytes()).hexdigest()[
            :16
        ]
        for name in ("image_tower", "text_tower")
    }
    assert found == {"image_tower": "67f6b685569861eb", "text_tower": "63212c6763fe9373"}
    assert experiments.EDITIONS == {"captioners": 1, "detailed": 2}


def test_a_claim_that_two_tables_share_is_counted_once() -> None:
    """Tables 2, 3 and 7 all have LoTLIP against LiT with long texts."""
    claims = [claim for table in TABLES for claim in table.claims]
    same = [one.text for one in claims if dict(one.weights) == {LOTLIP: 1.0, LIT_LONG: -1.0} and one.metric == "long"]
    assert same == ["LoTLIP against LiT + long texts", "m = 2 against m = 0", "corner tokens against neither"]
    assert len(claims) - len({claim.comparison for claim in claims}) == 2 * len(EVERY)


def test_the_paper_has_rows_level_that_it_prints_less_than_half_a_point_apart() -> None:
    for claim in (claim for table in TABLES for claim in table.claims if claim.printed is not None):
        assert claim.sign == (abs(claim.printed) >= LEVEL) * (1 if claim.printed > 0 else -1)


def one_row(low: float, rest: float, of: experiments.Experiment) -> Results:
    """Three seeds of every row at 30 and 31 and 32, but for `of`."""
    every = [content(row, seed, 30.0 + seed) for row in distinct(ROWS) for seed in range(3) if row != of]
    return Results([*every, *(content(of, seed, low if seed == 1 else rest) for seed in range(3))], DESIGN)


def test_a_row_whose_seeds_are_far_apart_is_marked_wherever_it_is_compared() -> None:
    """More than twice and more than ten points; each of its seeds stands below the table."""
    scratch = ROWS["table-8"][2]
    page = render(one_row(4.0, 20.0, scratch), DESIGN, 3)
    eight = page.split("## Table 8")[1].split("\n## ")[0]
    assert (
        eight.count("noise† |") == 3 and "† Seeds far apart. LoTLIP, both towers, long texts: 20.0, 4.0, 20.0;" in eight
    )
    assert page.count("† |") == 3 and "3 of them rest on rows whose seeds are far apart (†)" in page
    for low, rest in ((10.0, 20.0), (1.0, 11.0)):
        assert "†" not in render(one_row(low, rest, scratch), DESIGN, 3).split("## How it is decided")[0]


def test_what_is_said_of_a_loss_does_not_arise_where_there_is_none() -> None:
    five = next(table for table in TABLES if table.name == "figure-5")
    least, most = (experiments.sub_captions("lit_long", count) for count in (1, 6))
    slopes = [claim for claim in five.claims if claim.given]
    assert [claim.metric for claim in slopes] == ["short", "class"]
    for lost in (True, False):
        values = {least: 40.0, most: 20.0 if lost else 60.0}
        of = [content(row, seed, values.get(row, 30.0) + seed) for row in five.rows for seed in range(3)]
        page = render(Results(of, DESIGN), DESIGN, 3).split("## Figure 5")[1].split("\n## ")[0]
        assert page.count(Verdict.MOOT) == (0 if lost else 2)


@pytest.mark.parametrize(
    "ceiling, verdict",
    [(70.0, Verdict.CEILING), (80.0, Verdict.CEILING), (80.1, Verdict.HOLDS), (100.0, Verdict.HOLDS)],
)
@pytest.mark.parametrize("metric", CEILINGS)
def test_a_rise_that_is_no_larger_than_that_of_its_ceiling_says_nothing(
    metric: str, ceiling: float, verdict: Verdict
) -> None:
    """64 tokens are 20 points above 32; what can be found at most rises from `ceiling` to 100."""
    low, high = experiments.limited(32), experiments.limited(64)
    every = [
        content(row, seed, {low: 30.0, high: 50.0}.get(row, 50.0) + seed)
        for row in ROWS["figure-4"]
        for seed in range(3)
    ]
    for one in every:
        if one["key"] == low.key(DESIGN):
            one["figures"] |= dict.fromkeys(CEILINGS[metric], ceiling)
    page = render(Results(every, DESIGN), DESIGN, 3).split("## Figure 4")[1]
    line = next(line for line in page.splitlines() if line.startswith(f"| 64 tokens against 32 | {NAMES[metric]} |"))
    assert line.endswith(f"| +20.0 [+20.0, +20.0] | {verdict} |")
    assert page.count(Verdict.CEILING) == (verdict is Verdict.CEILING)


def test_of_equal_texts_one_finds_its_picture_and_none_is_found(tmp_path: Path) -> None:
    """Of five texts two are equal once they are cut at 16 tokens: four kinds, three of them alone."""
    from lotlip_data.pipeline.study.metrics import most_findable
    from lotlip_data.training.models.lotlip import load_model

    load_model(experiments.row("lotlip", context_length=16).config(DESIGN, 0)).save(str(tmp_path / "model"))
    start = "a red circle and a blue square stand on the grass under a small tree "
    texts = [start + "with fruit", start + "without fruit", "a red circle", "a blue circle", "a green circle"]
    assert most_findable(str(tmp_path / "model"), texts) == {"t2i": 80.0, "i2t": 60.0}


def test_the_flops_of_a_limit_are_its_own_whatever_its_row_shares(tmp_path: Path) -> None:
    """512 is the training of 256, as no text is longer; padded to it a text costs more."""
    results = fabricated(list(ROWS["figure-4"]))
    assert experiments.limited(512) == experiments.limited(256)
    page = render(results, DESIGN, 3)
    shown = [
        next(line for line in page.splitlines() if line.startswith(f"| {limit} tokens |"))
        for limit in experiments.LIMITS
    ]
    figures = [float(line.split(" | ")[-2]) for line in shown]
    assert figures == sorted(set(figures)) == pytest.approx(list(results.padded_flops.values()), abs=0.05)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"a": 1}', "its 'key' is missing"),
        ('{"key": "x", "seed": "0"}', "its 'seed' is missing or no whole number"),
        ('{"key": "04670a', "not JSON"),
        ("", "not JSON"),
        (f'{{"key": "{LIT.key(DESIGN)}", "seed": 0, "figures": {{}}}}', "its figure 'person.t2i.R@1' is missing"),
        ('{"key": "x", "seed": 0, "figures": {}, "seconds": "9"}', "not the result of a training"),
    ],
)
def test_a_result_that_is_damaged_is_named_before_anything_is_trained(tmp_path: Path, line: str, says: str) -> None:
    good = json.dumps(content(LIT, 0, 1.0))
    (tmp_path / "some.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match=rf"some\.jsonl, line 2: .*{says}"):
        read_lines(str(tmp_path / "some.jsonl"), DESIGN)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a-0.json").write_text(line)
    with pytest.raises(UserError, match=rf"results/a-0\.json: .*{says}.*does this training again"):
        study(str(tmp_path), str(tmp_path), None, [], 3, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"some.jsonl", "results"}


def test_results_of_another_study_make_no_empty_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other.jsonl").write_text(format_text([content(LIT, 0, 1.0, Design(scenes=3))]))
    with pytest.raises(UserError, match=r"all of its 1 results are of another study"):
        write_again(str(tmp_path / "other.jsonl"), str(tmp_path), 3)
    with pytest.raises(UserError, match="no results of a study can be read"):
        read_lines(str(tmp_path / "missing.jsonl"), DESIGN)
    other = content(LIT, 0, 1.0, Design(scenes=3)) | {"figures": {"of another evaluation": 1.0}}
    (tmp_path / "both.jsonl").write_text(format_text([other, content(LIT, 0, 1.0)]))
    caplog.clear()
    write_again(str(tmp_path / "both.jsonl"), str(tmp_path), 3)
    assert caplog.messages[0] == "study: 1 results of other settings, data or evaluations are left out"


def test_data_of_another_design_are_other_data(tmp_path: Path) -> None:
    small = dataclasses.replace(SMALL, scenes=6)
    assert data.dataset_of("x", small, LIT, 0) != data.dataset_of("x", SMALL, LIT, 0)
    data.write(str(tmp_path), small, "detailed", 1)
    assert data.is_written(str(tmp_path), small, "detailed", 1)
    assert not data.is_written(str(tmp_path), SMALL, "detailed", 1)


def test_a_table_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no table-4 in the study; one of table-2, table-3"):
        study(str(tmp_path), str(tmp_path), 0, ["table-4"], 3, 1)


def test_a_gallery_is_of_near_twins_with_a_text_each() -> None:
    pairs, classes = data.evaluation(1, "captioners", SMALL.gallery)
    assert [one.name for one in pairs] == ["person", "sharegpt4v", "short"]
    assert [len(one.pictures) for one in pairs] == [len(set(one.texts)) for one in pairs] == [16, 16, 8]
    assert pairs[0].pictures is pairs[1].pictures and len(classes.pictures) == len(classes.labels) == 8
    detailed, salient = data.evaluation(1, "detailed", SMALL.gallery)
    assert [one.name for one in detailed] == ["detailed", "unrelated", "short"]
    assert detailed[2].texts == pairs[2].texts and salient.labels == classes.labels
    twins, unrelated = detailed[0].texts, detailed[1].texts
    assert len(twins) == len(set(unrelated)) == len(detailed[1].pictures) == 16 and not set(twins) & set(unrelated)
    assert len({text[:200] for text in unrelated}) == 16 > len({text[:200] for text in twins})


def test_the_data_of_a_seed_are_nested_and_written_once(tmp_path: Path) -> None:
    """The smaller scales are the first samples of the larger ones, with features; a second call changes nothing."""
    small = dataclasses.replace(SMALL, scenes=6)
    data.write(str(tmp_path), small, "captioners", 1)
    at = {
        scale: open_dataset(data.dataset_of(str(tmp_path), small, experiments.scaled("lit", scale), 1))
        for scale in experiments.SCALES
    }
    assert {scale: one.samples for scale, one in at.items()} == {1: 6, 3: 18, 10: 60}
    for one in at.values():
        assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in at[10].shards[: len(one.shards)]]
        assert len(list(Path(one.url, "features").rglob("*.npz"))) >= len(one.shards)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".tar", ".npz")}
    data.write(str(tmp_path), small, "captioners", 1)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_training_scenes_are_those_of_the_seeds_block(tmp_path: Path) -> None:
    row, _ = data._sample(data.block(2)[5], "000000005", ("detailed",))
    assert row["url"].endswith(f"/{data.block(2)[5]}.jpg")
    assert len(row["detailed_sub"]) == 7 + 2 * len(crowded_scene(data.block(2)[5]).things)


def test_text_flops_are_those_of_the_formula(tmp_path: Path) -> None:
    """24 d² a token and 4 L d a token and layer; pooler and projection of each token kept, BERT's own pooler."""
    from lotlip_data.pipeline.study.metrics import padded_flops, text_flops
    from lotlip_data.training.models.lotlip import load_model

    model = load_model(experiments.limited(64).config(DESIGN, 0))
    model.save(str(tmp_path / "model"))
    texts = ["A red ring.", "A small blue heart is at the top left. A star."]
    lengths = [len(ids) for ids in model.tokenizer.encode(texts).ids]

    def formula(length: int, d: int = 128, layers: int = 3, heads: int = 3) -> float:
        return (layers * (24 * d**2 * length + 4 * length**2 * d) + (heads * 4 + 2) * d**2) / 1e6

    padded = padded_flops(experiments.limited(64).config(DESIGN, 0), (64, 512))
    assert padded == pytest.approx({64: formula(64), 512: formula(512)}, rel=1e-9)
    assert text_flops(str(tmp_path / "model"), texts) == pytest.approx(sum(map(formula, lengths)) / 2, rel=1e-9)


@pytest.mark.slow
def test_a_small_study_runs_stops_and_goes_on(tmp_path: Path) -> None:
    """Stopped again and again, every training ends with one result, and another start leaves all as it is."""
    folder, out = str(tmp_path / "study"), str(tmp_path / "docs")
    wanted = distinct(["table-2", "table-8", "figure-4"])
    minutes, left = 0.3, 1
    while left:
        ran = study(folder, out, minutes, ["table-2", "table-8", "figure-4"], 3, 2, SMALL)
        assert not ran.failed
        minutes, left = 2 * minutes, ran.left  # on a slow machine the first goes may be all start
    results = {path.name: path.read_bytes() for path in (tmp_path / "study/results").iterdir()}
    assert set(results) == {
        Path(result_of("", Training(row, seed).name(SMALL))).name for row in wanted for seed in range(3)
    }
    assert not list((tmp_path / "study/work").iterdir())
    assert study(folder, out, None, ["table-2", "table-8", "figure-4"], 3, 2, SMALL).done == 0
    assert results == {path.name: path.read_bytes() for path in (tmp_path / "study/results").iterdir()}
    page = (tmp_path / "docs/study/index.md").read_text()
    two = page.split("## Table 2")[1].split("## Table 3")[0]
    assert "not run yet" not in two and "| LoTLIP | 3 |" in two
