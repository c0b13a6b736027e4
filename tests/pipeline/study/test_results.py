"""Verdicts follow their stated rules; seeds are paired; the page says what the results say."""

import json
from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.demo import STUDY_ON_LOTLIP
from lotlip_data.pipeline.study import cells, markdown
from lotlip_data.pipeline.study.comparisons import LEVEL_POINTS, PRIMARY, Comparison
from lotlip_data.pipeline.study.design import ARMS, FIRST_DEVELOPMENT_SEED, Design, plan_seeds
from lotlip_data.pipeline.study.main import rebuild_page, run_study
from lotlip_data.pipeline.study.power import render_power_page
from lotlip_data.pipeline.study.report import render_page, write_page
from lotlip_data.pipeline.study.results import Results, Verdict, read_folder, read_lines
from tests.pipeline.study.results_fixture import DESIGN, FLAT, make_result, make_results
from tests.support.paths import ROOT

LEAD = next(each for each in PRIMARY if each.arms == ("lotlip", "lit_long") and each.metric == "long")
BASE = (50.0, 20.0, 40.0, 30.0, 45.0, 25.0, 35.0, 55.0)


def results_of(lead: tuple[float, ...]) -> Results:
    """LoTLIP is so many points above LiT + long texts, per seed; all other arms equal LiT + long texts."""
    values = dict.fromkeys(ARMS, BASE[: len(lead)])
    values["lotlip"] = tuple(base + gain for base, gain in zip(BASE, lead, strict=False))
    return Results(make_results(values), DESIGN, plan_seeds(False, len(lead)))


@pytest.mark.parametrize(
    "lead, verdict",
    [
        ((4.0, 5.0, 4.5, 5.5, 4.2, 5.1, 4.9, 5.0), Verdict.HOLDS),
        ((-4.0, -5.0, -4.5, -5.5, -4.2, -5.1, -4.9, -5.0), Verdict.REVERSED),
        ((0.4, -0.5, 0.3, -0.2, 0.1, 0.0, -0.1, 0.2), Verdict.LEVEL),
        ((9.0, -8.0, 7.0, 8.0, -3.0, 5.0, 9.0, 2.0), Verdict.UNDECIDED),
        ((5.0, 5.5), Verdict.UNFINISHED),
    ],
)
def test_verdicts_of_worked_examples(lead: tuple[float, ...], verdict: Verdict) -> None:
    assert results_of(lead).verdict(LEAD) is verdict


@pytest.mark.parametrize("missing", [("lotlip", 7), ("debias", 7)])
def test_there_is_no_verdict_before_all_planned_trainings_have_run(missing: tuple[str, int]) -> None:
    """The differences are shown, but a test that is read again and again would err more often than its level says."""
    contents = results_of((4.0, 5.0, 4.5, 5.5, 4.2, 5.1, 4.9, 5.0)).contents
    seven = [content for content in contents if (content["arm"], content["seed"]) != missing]
    results = Results(seven, DESIGN, plan_seeds(False, 8))
    assert {results.verdict(each) for each in PRIMARY} == {Verdict.UNFINISHED}
    assert results.difference(LEAD) is not None
    page = render_page(results, DESIGN)
    assert "All 14 primary comparisons are unfinished." in page and "All 7 comparisons are unfinished." in page
    assert "are interim ones" in page and "includes 0" not in page and "excludes 0" not in page
    gain = markdown.interval(results.difference(LEAD))
    assert f"| LoTLIP vs. LiT + long texts | long texts | is unfinished | {gain} | – | – | – |" in page
    assert (gain == "+4.8 [+4.4, +5.2]") is (missing[0] != "lotlip")
    assert Results(contents, DESIGN, plan_seeds(False, 7)).verdict(LEAD) is Verdict.HOLDS, "seed 7 was not planned"


def test_a_gain_that_is_significant_alone_but_not_among_all_comparisons_does_not_hold() -> None:
    results = results_of((0.5, 6.0, 1.0, 7.5, 0.2, 6.1, 2.9, 8.0))
    difference = results.difference(LEAD)
    assert difference is not None and difference.p < 0.05 < results.adjusted[LEAD]
    assert results.verdict(LEAD) is Verdict.UNDECIDED and difference.high > LEVEL_POINTS


def test_differences_are_taken_per_seed_where_all_arms_have_run() -> None:
    """LoTLIP is 2 points better for each common seed. Seeds of one arm alone differ much and do not count."""
    contents = make_results({"lotlip": (52.0, 12.0, 32.0, 99.0), "lit": (50.0, 10.0, 30.0)})
    results = Results([*contents, make_result("lit", 5, 1.0)], DESIGN, plan_seeds(False))
    comparison = Comparison("", "", "long", (("lotlip", 1.0), ("lit", -1.0)))
    assert results.differences(comparison) == [2.0, 2.0, 2.0]
    assert results.difference(Comparison("", "", "long", (("lotlip", 1.0), ("unmasked", -1.0)))) is None


def test_final_seeds_development_seeds_and_other_designs_do_not_mix() -> None:
    contents = [
        make_result("lit", FIRST_DEVELOPMENT_SEED, 1.0),
        make_result("lit", 1, 1.0, Design(scenes=96)),
        make_result("lit", 0, 2.0),
    ]
    final, pilots = (Results(contents, DESIGN, plan_seeds(pilot)) for pilot in (False, True))
    assert final.values("lit", "class") == {0: 2.0} and final.excluded == 1
    assert pilots.values("lit", "class") == {FIRST_DEVELOPMENT_SEED: 1.0} and pilots.excluded == 0


def test_the_page_leads_with_a_plot_and_five_sentences_that_say_what_the_results_say() -> None:
    page = render_page(results_of((4.0, 5.0, 4.5, 5.5, 4.2, 5.1, 4.9, 5.0)), DESIGN)
    head = page.split("\n## ")[0]
    sentences = [line for line in head.splitlines() if line[:3] in {f"{number}. " for number in range(1, 10)}]
    assert head.index("](primary.svg)") < head.index(sentences[0]) and len(sentences) == 5
    gain = "+4.8 [+4.4, +5.2]"
    metrics = f"long texts ({gain}), short texts ({gain}) and classes ({gain})"
    assert "**Do corner tokens help?** All 7 comparisons hold: " in sentences[2]
    assert f"LoTLIP is better than LiT + long texts on {metrics};" in sentences[2]
    assert "**Are several captioners better than one?** The comparison holds: " in sentences[3]
    assert "**Do long texts help?** All 3 comparisons are level: " in sentences[1]
    assert "LiT + long texts is within 2 points of LiT on long texts (+0.0 [+0.0, +0.0])" in sentences[1]
    assert f"All trainings have run: {8 * len(ARMS)} of {8 * len(ARMS)} ({len(ARMS)} arms)" in head
    assert "| LoTLIP vs. LiT + long texts | long texts | holds | +4.8 [+4.4, +5.2] | < 0.001 | 8 of 8 |" in page


def test_a_sentence_says_where_a_comparison_goes_the_other_way_and_where_it_decides_nothing() -> None:
    page = render_page(results_of((-4.0, -5.0, -4.5, -5.5, -4.2, -5.1, -4.9, -5.0)), DESIGN)
    assert "LoTLIP is worse than LiT + long texts on long texts (-4.8 [-5.2, -4.4])" in page
    page = render_page(results_of((9.0, -8.0, 7.0, 8.0, -3.0, 5.0, 9.0, 2.0)), DESIGN)
    assert "LoTLIP vs. LiT + long texts is undecided on long texts (+3.6 [-1.6, +8.8])" in page


def test_a_sentence_names_what_a_gain_costs() -> None:
    """Long-CLIP is better than the CLIP on its primary metrics, and worse on classes, a secondary one."""
    contents = make_results(dict.fromkeys(ARMS, BASE))
    for content in contents:
        if content["arm"] == "longclip":
            figures = content["figures"].items()
            content["figures"] = {name: value + (-9 if name == "class.top1" else 9) for name, value in figures}
    page = render_page(Results(contents, DESIGN, plan_seeds(False, len(BASE))), DESIGN)
    assert "Long-CLIP is better than the CLIP on long texts (+9.0 [+9.0, +9.0])" in page
    assert "short texts (+9.0 [+9.0, +9.0]), and lower on classes (-9.0 [-9.0, -9.0]) in secondary comparisons" in page


def test_a_secondary_comparison_has_no_verdict_and_a_direction_only_where_a_source_states_one() -> None:
    page = render_page(results_of((4.0, 5.0, 4.5, 5.5, 4.2, 5.1, 4.9, 5.0)), DESIGN)
    gain = "8 | +4.8 [+4.4, +5.2]"
    assert f"| LoTLIP vs. LiT | short texts | higher (+9.9) | {gain} | excludes 0, as expected |" in page
    assert f"| LoTLIP vs. LoTLIP without mask | short texts | equal (-0.4) | {gain} | excludes 0 |" in page
    assert f"| LoTLIP vs. LiT | near twins | – | {gain} | excludes 0 |" in page
    loss = "8 | -4.8 [-5.2, -4.4]"
    assert f"| LoTLIP with m = 4 vs. with m = 2 | long texts | higher (+0.6) | {loss} | excludes 0, opposite |" in page


def test_the_page_shows_what_has_not_run() -> None:
    page = render_page(Results(make_results({"lit": BASE[:3]}), DESIGN, plan_seeds(False, 8)), DESIGN)
    assert f"**Not all trainings have run**: 3 of {8 * len(ARMS)}" in page
    assert f"All {len(PRIMARY)} primary comparisons are unfinished." in page
    assert "Nothing has run yet" in render_page(Results([], DESIGN, plan_seeds(False)), DESIGN)


def test_an_arm_that_still_learns_is_named() -> None:
    falling = FLAT | {"loss": [3.0, 2.9, 2.8, 2.6, 2.4, 2.2, 2.0, 1.7, 1.3, 0.8]}
    contents = make_results(dict.fromkeys(ARMS, BASE[:3]))
    flat = render_page(Results(contents, DESIGN, plan_seeds(False, 3)), DESIGN)
    assert "All trainings of all arms meet it." in flat
    contents[0]["curve"] = falling
    page = render_page(Results(contents, DESIGN, plan_seeds(False, 3)), DESIGN)
    assert f"These arms miss it: {ARMS[contents[0]['arm']].label} (1 of 3 trainings)." in page


def test_equal_results_give_an_equal_page_and_equal_plots_byte_for_byte(tmp_path: Path) -> None:
    results = results_of((4.0, 5.0, 4.5, 5.5, 4.2, 5.1, 4.9, 5.0))
    write_page(results, DESIGN, str(tmp_path / "a"))
    rebuild_page(str(tmp_path / "a/study/results.jsonl"), str(tmp_path / "b"), 8)
    files = [{path.name: path.read_bytes() for path in (tmp_path / each / "study").iterdir()} for each in "ab"]
    assert files[0] == files[1] and set(files[0]) == {"index.md", "results.jsonl", "primary.svg", "curves.svg"}


def test_the_power_page_is_calculated_from_development_seeds_alone() -> None:
    lead = (1.0, 3.0, 5.0, 7.0)
    values = {"lit_long": BASE[:4], "lotlip": [base + gain for base, gain in zip(BASE, lead, strict=False)]}
    contents = make_results(values, FIRST_DEVELOPMENT_SEED) + make_results(values)
    page = render_power_page(Results(contents, DESIGN, plan_seeds(True, 4)), DESIGN)
    assert "from 8 trainings of development seeds" in page
    assert "| LoTLIP vs. LiT + long texts | long texts | 4 | +4.0 | 2.6 | 4.5 |" in page
    assert "| LiT + long texts vs. LiT | long texts | – | – | – | – |" in page
    assert "takes 36 CPU seconds on average" in page
    assert "No pilot has run yet." in render_power_page(Results([], DESIGN, plan_seeds(True)), DESIGN)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1}', "the field `key` is missing"),
        ('{"key": "x", "arm": "lit", "seed": "0"}', "the field `seed` is wrong"),
        ('{"key": "04670a', "not JSON"),
        ("", "not JSON"),
        (json.dumps(make_result("lit", 0, float("nan"))), "the field `figures.person.t2i.R@1` is wrong"),
        (json.dumps(make_result("lit", 0, 2340.0)), "the field `figures.person.t2i.R@1` is wrong"),
        (json.dumps(make_result("lit", 0, 1.0, chance=float("inf"))), "the field `chance`"),
    ],
)
def test_a_damaged_result_is_reported_before_any_training(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(make_result("lit", 0, 1.0))
    (tmp_path / "some.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match=rf"some\.jsonl, line 2: .*{message}"):
        read_lines(str(tmp_path / "some.jsonl"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a-0.json").write_text(line)
    with pytest.raises(UserError, match=rf"results/a-0\.json: .*{message}.*repeats this training"):
        run_study(str(tmp_path), str(tmp_path), None, [], 3, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"some.jsonl", "results"}


def test_a_line_may_repeat_but_not_contradict_another_one(tmp_path: Path) -> None:
    """Files of several machines are often joined. A repeated line would count as a training that has not run."""
    lines = [make_result("lit", 0, 1.0), make_result("lit", 1, 2.0), make_result("lit", 0, 1.0)]
    (tmp_path / "joined.jsonl").write_bytes(cells.format_lines(lines))
    assert read_lines(str(tmp_path / "joined.jsonl")) == lines[:2]
    (tmp_path / "joined.jsonl").write_bytes(cells.format_lines([*lines, make_result("lit", 1, 3.0)]))
    with pytest.raises(
        UserError, match=r"joined\.jsonl, lines 2 and 4: different results of one training; keep the one"
    ):
        read_lines(str(tmp_path / "joined.jsonl"))


def test_results_of_another_study_make_no_empty_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = make_result("lit", 0, 1.0, Design(scenes=96))
    (tmp_path / "other.jsonl").write_bytes(cells.format_lines([other]))
    with pytest.raises(
        UserError, match="all of its 1 results belong to other seeds or to a study with other settings, "
    ):
        rebuild_page(str(tmp_path / "other.jsonl"), str(tmp_path), 3)
    with pytest.raises(UserError, match="cannot read the results of a study"):
        read_lines(str(tmp_path / "missing.jsonl"))
    (tmp_path / "both.jsonl").write_bytes(cells.format_lines([other, make_result("lit", 0, 1.0)]))
    caplog.clear()
    rebuild_page(str(tmp_path / "both.jsonl"), str(tmp_path), 3)
    assert caplog.messages[0] == "study: 1 results with other settings, data or evaluation are excluded"


@pytest.mark.parametrize(("seed", "pilot", "remedy"), [(1000, False, "add --pilot"), (0, True, "leave out --pilot")])
def test_results_of_the_other_seeds_are_an_error_that_names_the_option(
    seed: int, pilot: bool, remedy: str, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(cells.format_lines([make_result("lit", seed, 1.0)]))
    kind = "final" if pilot else "development"
    with pytest.raises(UserError, match=f"results.jsonl: its results are those of {kind} seeds; {remedy}$"):
        rebuild_page(str(file), str(tmp_path), None, pilot)
    assert not (tmp_path / "study").exists()


def test_imported_results_are_not_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They come from several machines. A result that the folder has is kept; one of another study is left out."""
    own, new = make_result("lit", 0, 1.0), make_result("lotlip", 1, 3.0)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_bytes(cells.format_lines([own | {"steps": 7}, make_result("lit", 1, 2.0)]))
    caplog.set_level("INFO")
    files[1].write_bytes(cells.format_lines([new, make_result("lit", 2, 1.0, Design(scenes=96))]))
    folder = tmp_path / "study"
    cells.create(str(folder / "results" / f"{own['key']}-0.json"), own)
    summary = run_study(str(folder), str(tmp_path), 0, ["lit_long"], 3, 1, imports=[str(file) for file in files])
    kept = {(each["arm"], each["seed"]): each["steps"] for each in read_folder(str(folder))}
    assert kept == {("lit", 0): 100, ("lit", 1): 100, ("lotlip", 1): 100} and summary.done == 0
    assert "a.jsonl: lit, seed 0: the folder has another result, which stays" in caplog.text
    assert "b.jsonl: 1 results; 1 others are of another study" in caplog.text
    with pytest.raises(UserError, match=r"a.jsonl: its results are those of final seeds; leave out --pilot$"):
        run_study(str(folder), str(tmp_path), 0, [], None, 1, pilot=True, imports=[str(files[0])])


def test_an_unknown_arm_is_rejected_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the study has no arm table-4; choose from lit, lit_long"):
        run_study(str(tmp_path), str(tmp_path), 0, ["table-4"], 3, 1)


def test_the_demo_and_the_readme_say_of_lotlip_what_the_study_says() -> None:
    results = Results(read_lines(str(ROOT / "docs" / "study" / "results.jsonl")), Design(), plan_seeds(False))
    assert results.verdict(LEAD) == STUDY_ON_LOTLIP
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| [study]"))
    assert markdown.interval(results.difference(LEAD)) in row


@pytest.mark.parametrize(
    ("page", "file", "pilot"), [("index.md", "results.jsonl", False), ("power.md", "pilots.jsonl", True)]
)
def test_the_committed_pages_are_those_of_the_committed_results(
    tmp_path: Path, page: str, file: str, pilot: bool
) -> None:
    """Fails if a setting, a default or a word of the page changes, or if a result belongs to another study."""
    folder = ROOT / "docs" / "study"
    rebuild_page(str(folder / file), str(tmp_path), None, pilot)
    for name in (page, file):
        assert (tmp_path / "study" / name).read_bytes() == (folder / name).read_bytes()
