"""`eval` from the command line: every task, from published files to tables, for models of three kinds."""

import dataclasses
import json
import shutil

import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import parse
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.model_stages import evaluate as evaluation
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.paper_results import RELEASED, TABLE_4, TABLE_5, TABLE_10, TABLE_11
from lotlip_data.training.evaluation.report import tables
from lotlip_data.training.evaluation.tasks.imagenet import read_classes
from lotlip_data.training.evaluation.tasks.registry import TASKS
from lotlip_data.training.models.lotlip import load_model
from tests.training.evaluation import published_files as eval_files
from tests.training.evaluation.tiny_clips import write_clip, write_open_clip
from tests.training.run_fixture import write_towers

SIZES = {
    "dci": 3,
    "iiw": 4,
    "sharegpt4v-1k": 4,
    "sharegpt4v-10k": 4,
    "urban-1k": 3,
    "docci": 2,
    "mscoco": 3,
    "flickr30k": 3,
    "imagenet": 3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval") / "data"
    eval_files.dci(root / "dci")
    eval_files.iiw(root / "iiw")
    eval_files.sharegpt4v(root / "sharegpt4v-1k")
    shutil.copytree(root / "sharegpt4v-1k", root / "sharegpt4v-10k")
    eval_files.urban1k(root / "urban-1k")
    eval_files.docci(root / "docci")
    eval_files.karpathy(root / "mscoco", "dataset_coco.json", "val2014")
    eval_files.karpathy(root / "flickr30k", "dataset_flickr30k.json", "flickr30k-images")
    eval_files.imagenet_folders(root / "imagenet")
    return root


@pytest.fixture
def published(monkeypatch):
    """The tasks as if they were published with as few images as are there, and ImageNet with two templates."""
    small = {name: dataclasses.replace(TASKS[name], images=size) for name, size in SIZES.items()}
    small["imagenet"] = dataclasses.replace(
        small["imagenet"], read_classes=lambda folder: (read_classes(folder)[0], read_classes(folder)[1][:2])
    )
    monkeypatch.setattr(evaluation, "TASKS", small)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    towers = write_towers(folder / "towers")
    load_model(make_config(**towers, context_length=32)).save(str(folder / "model"))
    return folder / "model"


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_every_retrieval_task_of_a_model_of_ours(data, published, model):
    pytest.importorskip("open_clip")
    names = [name for name in SIZES if name != "imagenet"]
    found = run(model, "--data", data, *(part for name in names for part in ("--task", name)))
    assert found.exit_code == 0, found.output
    out = model.parent / f"eval-{'-'.join(names)}.json"
    results = json.loads(out.read_text())
    for name in names:
        task, about, measured = TASKS[name], results["settings"]["tasks"][name], results["retrieval"][name]
        assert measured["images"] == SIZES[name] and measured["texts"] == SIZES[name] * task.texts_per_image
        assert set(measured["t2i"]) == set(measured["i2t"]) == {"R@1", "R@5", "R@10"}
        assert about["statistics"]["texts"] == measured["texts"] and not about["partial"]
    assert results["retrieval"]["dci"]["cut"] == 1.0 and results["retrieval"]["mscoco"]["cut"] == 0.0
    assert "dci: 100.0% of the texts are longer than 32 tokens; " in found.stderr + found.stdout
    text = out.with_suffix(".md").read_text()
    assert "| 100M | 100M | LoTLIP | 62.10 | 61.06 |" in text and f"| ours |  | **{model}** |" in text
    assert "Table 5" in text and "| Urban-1k | 3 / 3 | 3 / 3 |" in text and out.with_suffix(".tex").exists()


def test_open_clips_and_transformers_models_are_evaluated_alike(data, published, tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    monkeypatch.chdir(tmp_path)
    clips = [f"open_clip:{write_open_clip(tmp_path / 'a')}", f"clip:{write_clip(tmp_path / 'b')}"]
    for clip in clips:
        found = run(clip, "--task", f"imagenet={data / 'imagenet'}", "-t", f"mscoco={data / 'mscoco'}", "--json")
        assert found.exit_code == 0, found.output
        results = json.loads(found.stdout)
        assert results["classification"]["imagenet"]["images"] == 3 and results["settings"]["context_length"] == 20
    written = sorted(tmp_path.glob("eval-*.json"))
    assert len(written) == 2 and all(path.name.endswith("-imagenet-mscoco.json") for path in written)
    shown = CliRunner().invoke(app, ["eval-tables", *map(str, written)]).stdout
    assert all(f"**{clip}**" in shown for clip in clips) and "Table 4" not in shown  # of which nothing was measured
    latex = CliRunner().invoke(app, ["eval-tables", *map(str, written), "--latex"]).stdout
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4


def test_the_worlds_scenes_are_for_any_model_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run(f"clip:{write_clip(tmp_path / 'b')}", "--json")
    assert found.exit_code == 0, found.output
    [written] = tmp_path.glob("eval-clip-*.json")
    assert json.loads(found.stdout)["retrieval"] == json.loads(written.read_text())["retrieval"]


def test_the_stage_evaluates_each_trained_model_on_every_task_of_the_manifest(data, published, model, tmp_path):
    """Results lie beside the model, where `eval` writes them, so a further task leaves those that are there."""
    run = Run.at(str(tmp_path / "run"))
    shutil.copytree(model, tmp_path / "run" / "train" / "lotlip" / "model")
    (tmp_path / "run" / "train" / "lotlip" / "done.json").write_text("{}")
    head = f"name: x\nsources: [{{name: a, files: a.csv}}]\nevaluation_data: {data}\n"
    for tasks, is_new in (("[iiw]", True), ("[iiw]", False), (f"[iiw, {{task: docci, data: {data}/docci}}]", True)):
        outcome = evaluation.evaluate(parse(f"{head}evaluate: {tasks}", "m"), run)
        assert (outcome.did_something, outcome.failed) == (is_new, [])
    assert outcome.figures["lotlip"]["retrieval"].keys() == {"iiw", "docci"}
    assert get_status(run)["evaluated"] == {
        "lotlip": [f"{run.train('lotlip')}/eval-docci.json", f"{run.train('lotlip')}/eval-iiw.json"]
    }
    outcome = evaluation.evaluate(parse(f"{head}evaluate: [{{task: dci, data: /none}}, iiw]", "m"), run)
    assert len(outcome.failed) == 1 and outcome.failed[0].startswith("lotlip: DCI: there is no /none/")
    assert outcome.figures["lotlip"]["retrieval"].keys() == {"iiw"}


@pytest.mark.parametrize("arguments", [[], ["--task", "iiw"]])
def test_a_trainings_folder_in_place_of_its_models_is_told(data, model, arguments):
    found = run(model.parent, "--data", data, *arguments)
    assert found.exit_code == 2
    assert f"{model.parent}: is not a model, but its subfolder `model` is one; give {model}\n" in found.output


def test_the_same_command_again_says_the_same_figures(data, published, model, tmp_path):
    asked = (model, "--task", f"docci={data / 'docci'}", "--task", f"dci={data / 'dci'}", "--out", tmp_path / "x.json")
    first, second = ((found.stdout + found.stderr).splitlines() for found in (run(*asked), run(*asked)))
    assert [line for line in second if "nothing to do" not in line] == first and len(second) == len(first) + 1
    for told in (
        "docci: text to image R@1 ",
        "dci: text to image R@1 ",
        "dci: 100.0% of the texts are longer than 32 ",
    ):
        assert sum(line.startswith(told) for line in first) == 1


def test_one_model_by_two_paths_is_evaluated_once(data, published, model, tmp_path, monkeypatch):
    monkeypatch.chdir(model.parent)
    out = tmp_path / "x.json"
    asked = ("--task", f"docci={data / 'docci'}", "--out", out)
    assert run(model, *asked).exit_code == 0
    found = run("../" + model.parent.name + "/model", *asked)
    assert found.exit_code == 0 and "nothing to do" in found.stderr + found.stdout


def test_a_part_is_refused_and_with_allow_partial_marked_wherever_it_is_told(data, model, tmp_path):
    """The real counts: DCI has 7,805 images, and here are 3 of which one is damaged."""
    folder = tmp_path / "dci"
    shutil.copytree(data / "dci", folder)
    found = run(model, "--task", f"dci={folder}")
    assert found.exit_code == 2 and "7,805 images with 7,805 texts are published" in found.output
    (folder / "densely_captioned_images/photos/sa_1.jpg").write_bytes(b"no image")
    out = tmp_path / "part.json"
    found = run(model, "--task", f"dci={folder}", "--allow-partial", "--out", out)
    assert found.exit_code == 0, found.output
    results = json.loads(out.read_text())
    assert results["settings"]["tasks"]["dci"]["partial"] and results["retrieval"]["dci"]["damaged"] == [
        str(folder / "densely_captioned_images/photos/sa_1.jpg")
    ]
    left_out = out.with_suffix(".left_out.tsv").read_text()
    assert left_out == f"dci\tdamaged\t{folder}/densely_captioned_images/photos/sa_1.jpg\n"
    text = out.with_suffix(".md").read_text()
    assert "\\*" in text and "measured on a part" in text and "DCI: a part" in found.stderr + found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "coco"], "task 'coco' is unknown; did you mean 'mscoco'? Known are synthetic, dci, iiw"),
        (["--task", "iiw=/none", "--task", "iiw=/none"], "named twice"),
        (["--task", "world", "--task", "iiw"], "evaluated alone"),
        (["--task", "iiw=/none"], "/none/IIW-400/data.jsonl"),
        (["--task", "world=/none"], "the task world is generated, so it has no folder"),
    ],
)
def test_what_was_asked_wrongly_is_told(model, arguments, message):
    found = run(model, *arguments)
    assert found.exit_code == 2 and message in found.output


def test_a_file_that_is_no_evaluation_is_told(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    found = CliRunner().invoke(app, ["eval-tables", str(path)])
    assert found.exit_code == 2 and "not the results of an evaluation" in found.output


def _evaluation(share, tasks, **settings):
    ways = {way: {f"R@{k}": share for k in (1, 5, 10)} for way in ("t2i", "i2t")}
    found = {**ways, "images": 2, "texts": 2, "cut": 0.25, "cut_tokens": 0.1, "damaged": []}
    return {"retrieval": dict.fromkeys(tasks, found), "classification": {}, "settings": {"model": "d", **settings}}


def test_evaluations_of_one_model_fill_one_row_with_the_mean_of_the_eight_numbers():
    apart = [
        _evaluation(0.5, ["dci", "iiw"], name="m"),
        _evaluation(0.25, ["sharegpt4v-1k", "sharegpt4v-10k"], name="m"),
    ]
    apart[1]["settings"]["name"] = "m by another path"  # one model is one digest of weights
    both = [line for line in tables(apart).splitlines() if line.startswith("| ours |")]
    assert len(both) == 2  # in Table 4 and in Table 10
    row = both[:1]
    assert row == ["| ours |  | **m** |" + " 50.00 |" * 4 + " 25.00 |" * 4 + " 37.50 |"]
    missing = tables(apart[:1]).split("### ")[1]
    [ours] = [line for line in missing.splitlines() if line.startswith("| ours |")]
    assert ours.endswith("| – | – | – | – | – |")


@pytest.mark.parametrize(("form", "percent"), [("markdown", "%"), ("latex", r"\%")])
def test_with_every_figure_stands_what_was_cut_for_it(form, percent):
    """25% of the texts, 10% of the tokens; of results of before, the second was not counted."""
    one, other = _evaluation(0.5, ["dci", "mscoco"], name="m"), _evaluation(0.5, ["iiw", "dci"], name="n")
    other["settings"] |= {"model": "e", "tasks": {"iiw": {"title": "IIW"}}}
    other["retrieval"]["dci"] = {name: value for name, value in one["retrieval"]["dci"].items() if name != "cut_tokens"}
    text = tables([one, other], form)
    cut = f"25.0{percent} / 10.0{percent}"
    unknown = f"25.0{percent} / " + ("–" if form == "markdown" else "--")
    below = "\nCut at the context length (task / texts / tokens): "
    long, short = f"{below}m: dci / {cut}; n: dci / {unknown}, IIW / {cut}\n", f"{below}m: mscoco / {cut}\n"
    assert (text.count(long), text.count(short), text.count(below)) == (2, 2, 4)  # Tables 4 and 10, and 5 and 11
    head, row = "Texts cut | Tokens cut | Damaged", "| 25.0% | 10.0% | 0 |"
    if form == "latex":
        head, row = (one.replace("| ", "& ").replace(" |", "").replace("%", percent) for one in (head, row))
    assert text.count(head) == 1 and text.count(row) == 3


def test_the_papers_averages_are_the_means_of_its_numbers():
    """Held against slips in copying: each printed average is the mean of the eight within what rounding allows."""
    for row in (*TABLE_4, *TABLE_10):
        assert len(row.values) == 9
        assert sum(row.values[:8]) / 8 == pytest.approx(row.values[8], abs=0.011)
    assert all(len(row.values) == 9 for row in (*TABLE_5, *TABLE_11, RELEASED))
    assert {row.values for row in TABLE_4} > {
        row.values for row in TABLE_10 if row.long == "ViT-B/16" and row.short in ("3M", "100M")
    }


def test_two_results_of_a_model_and_task_with_other_figures_are_not_shown_as_one():
    one, other = _evaluation(0.5, ["dci", "iiw"], name="m"), _evaluation(0.25, ["iiw"], name="m")
    other["settings"]["tasks"] = {"iiw": {"title": "IIW"}}
    assert tables([one, one]) == tables([one])
    with pytest.raises(UserError, match="m: two results of iiw have different figures; give only one of them"):
        tables([one, other])


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_below_every_table_with_a_mark_stands_what_it_means(form):
    """Of a part of IIW and all of DCI. What names the columns of a table has no mark in it."""
    one = _evaluation(0.5, ["dci", "iiw"], name="m")
    one["settings"]["tasks"] = {"iiw": {"partial": True}}
    whole, text = tables([_evaluation(0.5, ["dci", "iiw"], name="m")], form), tables([one], form)
    said = "\nWith an asterisk (*): measured on a part of the published set\n"
    assert whole.count(said) == 0 and text.count(said) == 3  # Tables 4 and 10, and all figures
    assert text.count("50.00\\*" if form == "markdown" else "50.00*") == 2 + 2 + 6


def test_a_models_name_is_one_cell_whatever_is_in_it():
    text = tables([_evaluation(0.5, ["dci", "iiw"], name="a|b")])
    for table in text.split("### ")[1:]:
        lines = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_latex_escapes_what_is_special_in_names():
    text = tables([_evaluation(0.5, ["dci"], name="a_b%#&{~^$\\")], "latex")
    assert r"\textbf{a\_b\%\#\&\{\textasciitilde{}\textasciicircum{}\$\textbackslash{}}" in text
