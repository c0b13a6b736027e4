"""`eval` from the command line: every task, from published files to tables, for three kinds of models."""

import dataclasses
import json
import re
import shutil

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import parse
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.model_stages import evaluate as evaluation
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.paper_results import (
    LATER_MODELS,
    LATER_TASKS,
    RELEASED,
    TABLE_4,
    TABLE_5,
    TABLE_10,
    TABLE_11,
)
from lotlip_data.training.evaluation.report import tables
from lotlip_data.training.evaluation.tasks.fg_ovd import ATTRIBUTE_FILES, DIFFICULTY_FILES
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
    """The tasks as if their published sets had only the images in `data`, and ImageNet with two templates."""
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


def test_a_lotlip_model_is_evaluated_on_every_retrieval_task(data, published, model):
    pytest.importorskip("open_clip")
    names = [name for name in SIZES if name != "imagenet"]
    result = run(model, "--data", data, *(part for name in names for part in ("--task", name)))
    assert result.exit_code == 0, result.output
    out = model.parent / f"eval-{'-'.join(names)}.json"
    results = json.loads(out.read_text())
    for name in names:
        task, about, measured = TASKS[name], results["settings"]["tasks"][name], results["retrieval"][name]
        assert measured["images"] == SIZES[name] and measured["texts"] == SIZES[name] * task.texts_per_image
        assert set(measured["t2i"]) == set(measured["i2t"]) == {"R@1", "R@5", "R@10"}
        assert about["statistics"]["texts"] == measured["texts"] and not about["partial"]
    assert results["retrieval"]["dci"]["cut"] == 1.0 and results["retrieval"]["mscoco"]["cut"] == 0.0
    assert (
        "dci: 100.0% of the texts are longer than 32 tokens of the model's tokenizer; " in result.stderr + result.stdout
    )
    text = out.with_suffix(".md").read_text()
    assert "| 100M | 100M | LoTLIP | 62.10 | 61.06 |" in text and f"| ours |  | **{model.parent.name}** |" in text
    assert "Table 5" in text and "| Urban-1k | 3 / 3 | 3 / 3 |" in text and out.with_suffix(".tex").exists()


@pytest.fixture
def hard_negatives(tmp_path, monkeypatch):
    """A folder of small sets with hard negatives and with similar images, as if no more were published."""
    eval_files.sdci(tmp_path / "sets/sdci")
    eval_files.fg_ovd(tmp_path / "sets/fg-ovd", DIFFICULTY_FILES)
    eval_files.fg_ovd(tmp_path / "sets/fg-ovd-attributes", ATTRIBUTE_FILES)
    eval_files.sugarcrepe(tmp_path / "sets/sugarcrepe")
    eval_files.sugarcrepe_pp(tmp_path / "sets/sugarcrepe-pp")
    eval_files.fg_retrieval(tmp_path / "sets/flickr30k-fg", "Flickr30K", "flickr30k-images")
    eval_files.fg_retrieval(tmp_path / "sets/mscoco-fg", "MSCOCO", "val2014")
    small = {
        name: dataclasses.replace(
            task, checksums={}, categories=dict.fromkeys(task.categories), images=3, distractors=task.distractors and 2
        )
        for name, task in TASKS.items()
    }
    monkeypatch.setattr(evaluation, "TASKS", small)
    return tmp_path / "sets"


def test_sets_with_hard_negatives_are_evaluated_shown_and_compared(hard_negatives, model, tmp_path):
    names = sorted(path.name for path in hard_negatives.iterdir())
    outputs = [tmp_path / "first.json", tmp_path / "second.json"]
    for name, out in zip("xy", outputs, strict=True):
        tasks = [part for task in names for part in ("--task", task)]
        result = run(model, "--data", hard_negatives, *tasks, "--out", out, "--name", name)
        assert result.exit_code == 0, result.output
    results = json.loads(outputs[0].read_text())
    assert set(results["retrieval"]) == {"flickr30k-fg", "mscoco-fg"}
    assert set(results["selection"]) == {"fg-ovd", "fg-ovd-attributes", "sdci", "sugarcrepe", "sugarcrepe-pp"}
    assert results["selection"]["fg-ovd"]["queries"] == {"overall": 12, "hard": 3, "medium": 3, "easy": 3, "trivial": 3}
    assert "overall" not in results["selection"]["sdci"]["accuracy"]
    assert set(results["selection"]["sugarcrepe-pp"]["text_only"]) == {
        "overall",
        *TASKS["sugarcrepe-pp"].categories,
    }
    text = outputs[0].with_suffix(".md").read_text()
    assert "### Captions with hard negatives: accuracy" in text and "| FG-OVD | hard | 3 | " in text
    assert "| SugarCrepe++ | swap_att text-only | 2 | " in text and "| sDCI | pick5_scm | 12 | " in text
    assert re.search(r"\| x \| sDCI \| – \| – \|", text) and re.search(r"\| x \| SugarCrepe \| \d+\.\d\d \[", text)
    both = CliRunner().invoke(app, ["eval-tables", *map(str, outputs)])
    assert both.exit_code == 0 and "| Task | Category | Queries | **x** |" in both.stdout
    compared = CliRunner().invoke(app, ["eval-tables", "--compare", *map(str, outputs)])
    assert compared.exit_code == 0 and "| sDCI | all_scm Acc. | " in compared.stdout
    assert "is higher" not in compared.stdout, "both results are of the same model"


def test_a_damaged_picture_of_a_selection_set_is_listed_once(hard_negatives, model, tmp_path):
    (hard_negatives / "fg-ovd/val2017/000000000000.jpg").write_bytes(b"no image")
    arguments = [model, "--task", f"fg-ovd={hard_negatives / 'fg-ovd'}", "--out", tmp_path / "part.json"]
    refused = run(*arguments)
    assert refused.exit_code == 2 and "1 image cannot be read" in refused.output
    result = run(*arguments, "--allow-partial")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "part.json").read_text())["selection"]["fg-ovd"]["queries"]["overall"] == 4
    [line] = (tmp_path / "part.left_out.tsv").read_text().splitlines()
    assert line.startswith("fg-ovd\tdamaged\t") and line.endswith("val2017/000000000000.jpg")
    assert re.search(r"\| FG-OVD \| hard \| 1 \| .*\\\* \|", (tmp_path / "part.md").read_text())


def test_models_side_by_side_have_results_of_their_own():
    default = evaluation.default_results_url
    assert default("/runs/a/train/lit/model", ["dci", "iiw"]) == "/runs/a/train/lit/eval-dci-iiw.json"
    assert default("/models/one/", ["dci"]) == "/models/eval-one-dci.json"
    assert default("s3://bucket/models/two", []) == "s3://bucket/models/eval-two.json"
    assert default("open_clip:ViT-B-16/openai", ["dci"]).endswith("/eval-open-clip-ViT-B-16-openai-dci.json")


def test_models_of_open_clip_and_of_transformers_are_evaluated_the_same_way(data, published, tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    monkeypatch.chdir(tmp_path)
    clips = [f"open_clip:{write_open_clip(tmp_path / 'a')}", f"clip:{write_clip(tmp_path / 'b')}"]
    for clip in clips:
        result = run(clip, "--task", f"imagenet={data / 'imagenet'}", "-t", f"mscoco={data / 'mscoco'}", "--json")
        assert result.exit_code == 0, result.output
        results = json.loads(result.stdout)
        assert results["classification"]["imagenet"]["images"] == 3 and results["settings"]["context_length"] == 20
    written = sorted(tmp_path.glob("eval-*.json"))
    assert len(written) == 2 and all(path.name.endswith("-imagenet-mscoco.json") for path in written)
    shown = CliRunner().invoke(app, ["eval-tables", *map(str, written)]).stdout
    assert all(f"**{clip}**" in shown for clip in clips) and "Table 4" not in shown  # no long-text task was evaluated
    latex = CliRunner().invoke(app, ["eval-tables", *map(str, written), "--latex"]).stdout
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 5


def test_two_models_are_compared_by_their_files_or_by_their_names(data, published, tmp_path, monkeypatch):
    """The images lie in another folder for the second model, which changes no query."""
    pytest.importorskip("open_clip")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "mscoco", tmp_path / "elsewhere")
    clips = [f"open_clip:{write_open_clip(tmp_path / 'a')}", f"clip:{write_clip(tmp_path / 'b')}"]
    for clip, folder, name in zip(clips, (data / "mscoco", tmp_path / "elsewhere"), "xy", strict=True):
        ended = run(clip, "--task", f"mscoco={folder}", "--name", name, "--out", f"{name}.json")
        assert ended.exit_code == 0, ended.output
    by_file = CliRunner().invoke(app, ["eval-tables", "--compare", "x.json", "y.json"])
    assert by_file.exit_code == 0 and "### x and y: y minus x" in by_file.stdout
    assert "the queries of one image are drawn together" in by_file.stdout and "| MSCOCO | T2I R@1 |" in by_file.stdout
    by_name = CliRunner().invoke(app, ["eval-tables", "x.json", "y.json", "--compare", "x", "y"])
    assert by_name.stdout == by_file.stdout
    shown = CliRunner().invoke(app, ["eval-tables", "--compare", "x.json", "y.json", "--json"])
    compared = json.loads(shown.stdout)
    assert compared["models"] == ["x", "y"] and len(compared["differences"]) == 6
    assert all(each["paired"] and each["verdict"] == "not decided" for each in compared["differences"])
    assert compared["missing"] == compared["warnings"] == []  # same preprocessing, context length and texts
    latex = CliRunner().invoke(app, ["eval-tables", "--compare", "x.json", "y.json", "--latex"]).stdout
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1


def test_what_cannot_be_compared_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(_evaluation(0.5, ["dci"], name="x")))
    missing = CliRunner().invoke(app, ["eval-tables", "--compare", "x.json", "z"])
    assert missing.exit_code == 2 and "z: there is no such file; name a JSON file" in missing.output
    nothing = CliRunner().invoke(app, ["eval-tables"])
    assert nothing.exit_code == 2 and "or two of them with --compare A B" in nothing.output
    old = CliRunner().invoke(app, ["eval-tables", "--compare", "x.json", "x.json"])
    assert old.exit_code == 0 and "x (1) and x (2) have no outcome per query" in old.stdout
    assert "There is no figure that can be compared" in old.stdout


def test_different_protocols_in_one_table_are_a_warning(tmp_path):
    paths = []
    for name, limit in (("x", 77), ("y", 248)):
        evaluation = _evaluation(0.5, ["dci"], name=name) | {"protocol": {"dci": {"context_length": limit}}}
        evaluation["settings"]["model"] = name
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(evaluation))
    ended = CliRunner().invoke(app, ["eval-tables", *map(str, paths)])
    warning = "Measured with different protocols, dci: context length 77 (x) / 248 (y)"
    assert (
        ended.exit_code == 0 and ended.stdout.count(f"\n\n{warning}\n") == 4
    )  # Tables 4, 10, later models, all figures
    assert "| y | dci | 248 |" in ended.stdout


def test_later_models_have_their_sources_and_figures_that_were_not_read_there_are_marked():
    text = tables([_evaluation(0.5, ["urban-1k"], name="m")])
    [table] = [part for part in text.split("### ") if part.startswith("Later models")]
    rows = {line.split(" | ")[1]: line for line in table.splitlines() if line.startswith("| ") and "arXiv" in line}
    assert len(rows) == len({row.model for row in LATER_MODELS if not row.is_read})
    assert "93.1 / 93.0†" in rows["DeBias-CLIP B/16"] and rows["DeBias-CLIP B/16"].endswith("| arXiv 2602.22419 |")
    assert "| 88.80 / 84.80 | – | README of github.com/wuw2019/LoTLIP at 301b906 |" in table
    assert "With a dagger (†): from notes about the source." in table
    assert "| ours | **m** | – | – | – | – | 50.00 / 50.00 | – | measured |" in table
    assert all(row.values.keys() <= LATER_TASKS.keys() and row.source for row in LATER_MODELS)
    assert r"90.0 / 87.4\textdagger{}" in tables([_evaluation(0.5, ["urban-1k"], name="m")], "latex")


def test_cells_have_the_interval_and_the_mark_of_a_part():
    evaluation = _evaluation(0.5, ["dci"], name="m")
    evaluation["retrieval"]["dci"]["intervals"] = {way: {"R@1": [0.4, 0.6125]} for way in ("t2i", "i2t")}
    assert "| ours |  | **m** | 50.00 [40.00, 61.25] | 50.00 [40.00, 61.25] |" in tables([evaluation])
    assert "In brackets: 95% interval, by a bootstrap over the queries\n" in tables([evaluation])
    evaluation["settings"]["tasks"] = {"dci": {"partial": True}}
    assert "| 50.00 [40.00, 61.25]\\* |" in tables([evaluation])


def test_any_model_can_be_evaluated_on_synthetic_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(f"clip:{write_clip(tmp_path / 'b')}", "--json")
    assert result.exit_code == 0, result.output
    [written] = tmp_path.glob("eval-clip-*.json")
    assert json.loads(result.stdout)["retrieval"] == json.loads(written.read_text())["retrieval"]


def test_the_stage_evaluates_each_trained_model_on_every_task_of_the_manifest(data, published, model, tmp_path):
    """Results lie beside the model, where `eval` writes them, so a new task does not repeat existing results."""
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
def test_a_trainings_folder_instead_of_its_model_is_refused(data, model, arguments):
    result = run(model.parent, "--data", data, *arguments)
    assert result.exit_code == 2
    assert f"{model.parent}: is not a model, but its subfolder `model` is one; give {model}\n" in result.output


def test_the_same_command_again_logs_the_same_figures(data, published, model, tmp_path):
    arguments = (
        model,
        "--task",
        f"docci={data / 'docci'}",
        "--task",
        f"dci={data / 'dci'}",
        "--out",
        tmp_path / "x.json",
    )
    first, second = (
        [line for line in (result.stdout + result.stderr).splitlines() if not line.endswith(" left")]  # progress
        for result in (run(*arguments), run(*arguments))
    )
    assert [line for line in second if "nothing to do" not in line] == first and len(second) == len(first) + 1
    for beginning in (
        "docci: text to image R@1 ",
        "dci: text to image R@1 ",
        "dci: 100.0% of the texts are longer than 32 ",
    ):
        assert sum(line.startswith(beginning) for line in first) == 1


def test_a_model_given_by_two_paths_is_evaluated_once(data, published, model, tmp_path, monkeypatch):
    monkeypatch.chdir(model.parent)
    out = tmp_path / "x.json"
    arguments = ("--task", f"docci={data / 'docci'}", "--out", out)
    assert run(model, *arguments).exit_code == 0
    result = run("../" + model.parent.name + "/model", *arguments)
    assert result.exit_code == 0 and "nothing to do" in result.stderr + result.stdout


def test_a_part_of_a_set_is_refused_and_with_allow_partial_marked_in_all_results(data, model, tmp_path):
    """With the published counts: DCI has 7,805 images, and the folder has 3, one of them damaged."""
    folder = tmp_path / "dci"
    shutil.copytree(data / "dci", folder)
    result = run(model, "--task", f"dci={folder}")
    assert result.exit_code == 2 and "7,805 images with 7,805 texts are published" in result.output
    (folder / "densely_captioned_images/photos/sa_1.jpg").write_bytes(b"no image")
    out = tmp_path / "part.json"
    result = run(model, "--task", f"dci={folder}", "--allow-partial", "--out", out)
    assert result.exit_code == 0, result.output
    results = json.loads(out.read_text())
    assert results["settings"]["tasks"]["dci"]["partial"] and results["retrieval"]["dci"]["damaged"] == [
        str(folder / "densely_captioned_images/photos/sa_1.jpg")
    ]
    left_out = out.with_suffix(".left_out.tsv").read_text()
    assert left_out == f"dci\tdamaged\t{folder}/densely_captioned_images/photos/sa_1.jpg\n"
    text = out.with_suffix(".md").read_text()
    assert (
        "\\*" in text
        and "measured on a part" in text
        and "DCI: not the whole published set" in result.stderr + result.stdout
    )


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
def test_invalid_arguments_are_reported(model, arguments, message):
    result = run(model, *arguments)
    assert result.exit_code == 2 and message in result.output


def test_a_file_without_evaluation_results_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    result = CliRunner().invoke(app, ["eval-tables", str(path)])
    assert result.exit_code == 2 and "Name a JSON file that `lotlip-data eval` wrote" in result.output


def test_a_missing_file_of_results_is_named():
    result = CliRunner().invoke(app, ["eval-tables", "/no/such.json"])
    assert result.exit_code == 2 and "/no/such.json: there is no such file; name a JSON file" in result.output


def _evaluation(share, tasks, **settings):
    recalls = {way: {f"R@{k}": share for k in (1, 5, 10)} for way in ("t2i", "i2t")}
    scores = {**recalls, "images": 2, "texts": 2, "cut": 0.25, "cut_tokens": 0.1, "damaged": []}
    return {"retrieval": dict.fromkeys(tasks, scores), "classification": {}, "settings": {"model": "d", **settings}}


def test_results_of_one_model_fill_one_row_with_the_mean_of_the_eight_numbers():
    separate = [
        _evaluation(0.5, ["dci", "iiw"], name="m"),
        _evaluation(0.25, ["sharegpt4v-1k", "sharegpt4v-10k"], name="m"),
    ]
    separate[1]["settings"]["name"] = "m by another path"  # models are the same if the digests of their weights are
    both = [line for line in tables(separate).splitlines() if line.startswith("| ours |")]
    assert len(both) == 3  # in Table 4, in Table 10, and beside later models
    row = both[:1]
    assert row == ["| ours |  | **m** |" + " 50.00 |" * 4 + " 25.00 |" * 4 + " 37.50 |"]
    missing = tables(separate[:1]).split("### ")[1]
    [ours] = [line for line in missing.splitlines() if line.startswith("| ours |")]
    assert ours.endswith("| – | – | – | – | – |")


@pytest.mark.parametrize(("form", "percent"), [("markdown", "%"), ("latex", r"\%")])
def test_every_table_shows_the_share_of_texts_and_tokens_beyond_the_context_length(form, percent):
    """25% of the texts and 10% of the tokens. Results of earlier releases have no share of tokens."""
    first, second = _evaluation(0.5, ["dci", "mscoco"], name="m"), _evaluation(0.5, ["iiw", "dci"], name="n")
    second["settings"] |= {"model": "e", "tasks": {"iiw": {"title": "IIW"}}}
    scores = first["retrieval"]["dci"]
    second["retrieval"]["dci"] = {name: value for name, value in scores.items() if name != "cut_tokens"}
    text = tables([first, second], form)
    cut = f"25.0{percent} / 10.0{percent}"
    unknown = f"25.0{percent} / " + ("–" if form == "markdown" else "--")
    below = "\nCut at the context length (task / texts / tokens): "
    long, short = f"{below}m: dci / {cut}; n: dci / {unknown}, IIW / {cut}\n", f"{below}m: mscoco / {cut}\n"
    assert (text.count(long), text.count(short), text.count(below)) == (
        3,
        2,
        5,
    )  # Tables 4, 10 and later models; 5 and 11
    head, row = "Texts cut | Tokens cut | Damaged", "| 25.0% | 10.0% | 0 |"
    if form == "latex":
        head, row = (cells.replace("| ", "& ").replace(" |", "").replace("%", percent) for cells in (head, row))
    assert text.count(head) == 1 and text.count(row) == 3


def test_the_papers_averages_are_the_means_of_its_numbers():
    """Guards against typing errors: each printed average is the mean of the eight numbers within rounding."""
    for row in (*TABLE_4, *TABLE_10):
        assert len(row.values) == 9
        assert sum(row.values[:8]) / 8 == pytest.approx(row.values[8], abs=0.011)
    assert all(len(row.values) == 9 for row in (*TABLE_5, *TABLE_11, RELEASED))
    assert {row.values for row in TABLE_4} > {
        row.values for row in TABLE_10 if row.long == "ViT-B/16" and row.short in ("3M", "100M")
    }


def test_two_different_results_of_one_model_and_task_are_refused():
    first, second = _evaluation(0.5, ["dci", "iiw"], name="m"), _evaluation(0.25, ["iiw"], name="m")
    second["settings"]["tasks"] = {"iiw": {"title": "IIW"}}
    assert tables([first, first]) == tables([first])
    with pytest.raises(UserError, match="m: two results of iiw have different figures; give only one of them"):
        tables([first, second])


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_every_table_with_a_mark_explains_it(form):
    """With a part of IIW and all of DCI. The heads of the tables have no mark."""
    partial = _evaluation(0.5, ["dci", "iiw"], name="m")
    partial["settings"]["tasks"] = {"iiw": {"partial": True}}
    whole, text = tables([_evaluation(0.5, ["dci", "iiw"], name="m")], form), tables([partial], form)
    note = "\nWith an asterisk (*): measured on a part of the set\n"
    assert whole.count(note) == 0 and text.count(note) == 4  # Tables 4 and 10, later models, and all figures
    assert (
        text.count("50.00\\*" if form == "markdown" else "50.00*") == 2 + 2 + 1 + 6
    )  # one for both directions beside later models


def test_a_models_name_is_one_cell_also_with_a_vertical_bar():
    text = tables([_evaluation(0.5, ["dci", "iiw"], name="a|b")])
    for table in text.split("### ")[1:]:
        lines = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_latex_escapes_special_characters_in_names():
    text = tables([_evaluation(0.5, ["dci"], name="a_b%#&{~^$\\")], "latex")
    assert r"\textbf{a\_b\%\#\&\{\textasciitilde{}\textasciicircum{}\$\textbackslash{}}" in text


def test_a_set_of_ones_own_is_evaluated_and_its_part_is_marked_everywhere(model, tmp_path):
    for index in range(3):
        eval_files.write_image(tmp_path / "own" / f"{index}.jpg", index)
        (tmp_path / "own" / f"{index}.txt").write_text(f"Text {index}.")
    whole = run(model, "--task", f"custom={tmp_path / 'own'}", "--out", tmp_path / "whole.json", "--name", "mine")
    assert whole.exit_code == 0, whole.output
    assert "custom: text to image R@1" in whole.output and "partial" not in whole.output
    assert "| **mine** |" in (tmp_path / "whole.md").read_text() or "| mine |" in (tmp_path / "whole.md").read_text()
    (tmp_path / "own" / "0.txt").unlink()
    refused = run(model, "--task", f"custom:pets={tmp_path / 'own'}", "--out", tmp_path / "part.json")
    assert refused.exit_code == 2 and "1 image without a text" in refused.output
    part = run(model, "--task", f"custom:pets={tmp_path / 'own'}", "--out", tmp_path / "part.json", "--allow-partial")
    assert part.exit_code == 0, part.output
    assert "custom-pets (partial): text to image R@1" in part.output
    assert r"\*" in (tmp_path / "part.md").read_text()


def test_an_evaluation_without_a_task_says_that_it_measures_synthetic_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = f"clip:{write_clip(tmp_path / 'b')}"
    result = run(clip)
    assert result.exit_code == 0, result.output
    assert "no --task is given" in result.output and "says nothing about photographs" in result.output
    assert "synthetic scenes, long: text to image R@1" in result.output
    again = run(clip, "-t", "synthetic", "--name", "my clip")
    assert "no --task" not in again.output and "already evaluated" in again.output
    [written] = tmp_path.glob("eval-clip-*.json")
    assert json.loads(written.read_text())["settings"]["name"] == "my clip"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/data/runs/demo/train/lotlip/model", "demo/lotlip"),
        ("s3://bucket/demo/train/lotlip/model/", "demo/lotlip"),
        ("/data/models/lotlip-b16", "lotlip-b16"),
        ("/data/mine/model", "mine"),
        ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16/openai"),
    ],
)
def test_a_model_is_named_by_its_training_or_its_folder(model, name):
    assert evaluation.display_name(model) == name


def test_results_that_name_the_model_by_its_path_are_reused(data, published, model, tmp_path):
    out = tmp_path / "iiw.json"
    assert run(model, "--task", f"iiw={data / 'iiw'}", "--out", out).exit_code == 0
    earlier = json.loads(out.read_text())
    del earlier["content_sha256"]  # earlier releases wrote none
    earlier["settings"]["name"] = str(model)
    out.write_text(json.dumps(earlier))
    again = run(model, "--task", f"iiw={data / 'iiw'}", "--out", out)
    assert again.exit_code == 0 and "already evaluated" in again.output, again.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip:/no/such/clip", "model: /no/such/clip: there is no such folder"),
        ("/no/such/model", "/no/such/model: there is no such folder, or it is empty"),
        ("open_clip:ViT-B16/openai", "open_clip has no model 'ViT-B16'; did you mean ViT-B-16"),
        ("open_clip:ViT-B-16/opena", "'opena' is neither a file nor a tag of ViT-B-16; its tags are openai, "),
        ("open_clip:ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai: .* the hub .* cannot be reached"),
        ("open_clip:hf-hub:someone/clip", "someone/clip: .* the hub .* cannot be reached"),
    ],
)
def test_a_model_that_cannot_be_had_is_named_before_the_images_of_a_task_are_read(
    name, message, tmp_path, monkeypatch, caplog
):
    if name.startswith("open_clip:"):
        pytest.importorskip("open_clip")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=message):
        evaluation.evaluate_tasks(name, ["iiw"], str(tmp_path), None)
    assert "Retrying" not in caplog.text


def test_a_run_in_place_of_its_model_is_told(tmp_path):
    (tmp_path / "manifest.yaml").write_text("name: mine")
    with pytest.raises(UserError, match=r"is a run; give the folder of one of its models, .*/train/NAME/model"):
        evaluation.evaluate_tasks(str(tmp_path), ["iiw"], str(tmp_path), None)
