"""Readers of the published evaluation sets: what they take, and what they say when something is wrong."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from PIL import ImageChops

from lotlip_data.manifests import subcaptions
from lotlip_data.training.eval_tasks.base import ImageTexts, is_partial, read_image, read_task
from lotlip_data.training.eval_tasks.files import Folder, TaskDataError
from lotlip_data.training.eval_tasks.iiw import IIW
from lotlip_data.training.eval_tasks.tasks import TASKS
from tests.training import eval_files

GOLDEN = Path(__file__).parents[1] / "goldens" / "iiw.jsonl.gz"


def read(name, folder, images):
    """The task as if it were published with so many images."""
    return read_task(dataclasses.replace(TASKS[name], images=images, sha256={}), str(folder))


def same(found, expected, tmp_path):
    """Whether the images are those of `write_image` with these indices, in order."""
    for image, index in zip(found.images(), expected, strict=True):
        eval_files.write_image(tmp_path / "expected.jpg", index)
        if ImageChops.difference(image, read_image(str(tmp_path / "expected.jpg"))).getbbox():
            return False
    return True


def test_dci_takes_all_splits_and_joins_short_and_extra_caption(tmp_path):
    eval_files.dci(tmp_path)
    found = read("dci", tmp_path, 3)
    assert found.texts[1].startswith("A short caption of image 2.\nMore of it. ") and found.image_of_text == (0, 1, 2)
    assert same(found, (1, 2, 0), tmp_path)  # the order of splits.json


def test_iiw_takes_its_three_parts_and_images_published_under_another_split(tmp_path):
    eval_files.iiw(tmp_path)
    found = read("iiw", tmp_path, 4)
    assert found.texts == tuple(map(eval_files.text, range(4))) and same(found, range(4), tmp_path)


def test_iiw_of_the_authors_image_folders(tmp_path):
    eval_files.iiw(tmp_path)
    for old, new in (("images_aar", "docci_aar"), ("images", "docci"), ("densely_captioned_images/photos", "dci")):
        (tmp_path / old).rename(tmp_path / new)
    assert same(read("iiw", tmp_path, 4), range(4), tmp_path)


def test_iiw_tells_that_its_texts_are_not_those_of_the_papers_statistics(tmp_path):
    eval_files.iiw(tmp_path)
    found = read_task(dataclasses.replace(IIW, images=4), str(tmp_path))
    assert found.changed == ("IIW-400/data.jsonl", "DOCCI_Test/data.jsonl", "DCI_Test/data.jsonl")


def test_table_1s_row_is_reported_of_the_612_published_texts():
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as lines:
        texts = tuple(json.loads(line)["IIW"] for line in lines)
    found = ImageTexts(IIW, tuple(map(str, range(612))), (), (), texts, tuple(range(612))).statistics()
    assert (found["images"], found["texts"]) == (612, 612)
    assert (round(found["sub_captions_per_text"], 2), round(found["tokens_per_text"], 2)) == IIW.row


def test_sharegpt4v_takes_the_first_records_of_sa_1b_wherever_its_archives_were_unpacked(tmp_path):
    eval_files.sharegpt4v(tmp_path)
    found = read("sharegpt4v-1k", tmp_path, 4)
    assert found.texts == tuple(map(eval_files.text, range(4))) and same(found, range(4), tmp_path)
    assert TASKS["sharegpt4v-1k"].read.keywords == {"records": 1_000}
    assert TASKS["sharegpt4v-10k"].read.keywords == {"records": 10_000}


def test_no_more_of_sharegpt4vs_file_is_read_than_is_needed(tmp_path):
    """The file has 1.5 GB: here it is cut off after the records that are needed."""
    eval_files.sharegpt4v(tmp_path)
    [path] = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes()[:-100])
    folder = Folder(str(tmp_path), "x", "y")
    records = TASKS["sharegpt4v-1k"].read.func
    assert len(list(records(folder, records=3))) == 3
    with pytest.raises(TaskDataError, match="no whole JSON array"):
        list(records(folder, records=5))


def test_a_json_array_is_the_same_in_chunks_of_any_size(tmp_path, monkeypatch):
    rows = [{"text": "é " * i + '}, {"[]\\"', "n": [i, {"x": None}]} for i in range(20)]
    for name, indent, ascii_only in (("a.json", None, True), ("b.json", 1, False)):
        (tmp_path / name).write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        for chunk in (1, 3, 7, 1000):
            monkeypatch.setattr("lotlip_data.training.eval_tasks.files.CHUNK", chunk)
            assert list(Folder(str(tmp_path), "x", "y").json_array(name)) == rows


def test_urban_1k_takes_a_texts_first_line(tmp_path):
    eval_files.urban1k(tmp_path)
    found = read("urban-1k", tmp_path, 3)
    assert found.texts == tuple(map(eval_files.text, range(3))) and same(found, range(3), tmp_path)
    assert read("urban-1k", tmp_path / "Urban1k", 3).texts == found.texts


def test_docci_takes_its_test_split(tmp_path):
    eval_files.docci(tmp_path)
    found = read("docci", tmp_path, 2)
    assert found.texts == (eval_files.text(1), eval_files.text(2)) and same(found, (1, 2), tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "images"),
    [("mscoco", "dataset_coco.json", "val2014"), ("flickr30k", "dataset_flickr30k.json", "flickr30k-images")],
)
def test_karpathys_test_images_have_their_first_five_captions(tmp_path, name, file, images):
    eval_files.karpathy(tmp_path, file, images)
    found = read(name, tmp_path, 3)
    assert found.texts == tuple(f"Caption {k} of image {i}." for i in (1, 2, 3) for k in range(5))
    assert found.image_of_text == (0,) * 5 + (1,) * 5 + (2,) * 5 and same(found, (1, 2, 3), tmp_path)


@pytest.mark.parametrize("layout", ["imagenet_folders", "imagenet_kaggle"])
def test_imagenets_classes_are_in_the_order_of_wordnet_ids(tmp_path, layout):
    open_clip = pytest.importorskip("open_clip")
    getattr(eval_files, layout)(tmp_path)
    found = read("imagenet", tmp_path, 3)
    assert sorted(found.labels) == [0, 500, 999] and same(found, found.labels, tmp_path)
    assert found.class_names == open_clip.IMAGENET_CLASSNAMES and len(found.class_names) == 1000
    assert len(found.templates) == 80 and found.templates[0] == "a bad photo of a {}."


def test_class_names_of_the_folder_take_the_place_of_open_clips(tmp_path):
    pytest.importorskip("open_clip")
    eval_files.imagenet_folders(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {i}" for i in range(1000)))
    assert read("imagenet", tmp_path, 3).class_names[999] == "name 999"
    (tmp_path / "classnames.txt").write_text("one\ntwo")
    with pytest.raises(TaskDataError, match=r"classnames.txt has 2 lines, not 1000"):
        read("imagenet", tmp_path, 3)


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_folder_is_told_what_belongs_there_and_where_to_get_it(tmp_path, name):
    with pytest.raises(TaskDataError) as caught:
        read_task(TASKS[name], str(tmp_path))
    assert TASKS[name].title in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "https://" in str(caught.value) and "FOLDER/" in str(caught.value)


def test_fewer_images_than_published_are_refused_unless_a_part_is_wanted(tmp_path):
    eval_files.dci(tmp_path)
    (tmp_path / "densely_captioned_images/photos/sa_1.jpg").unlink()
    task = TASKS["dci"]
    with pytest.raises(
        TaskDataError, match=r"7,805 images with 7,805 texts are published, and .* holds 2 with 2"
    ) as caught:
        read_task(task, str(tmp_path))
    assert "1 images are missing" in str(caught.value) and "photos/sa_1.jpg" in str(caught.value)
    assert "--allow-partial" in str(caught.value)
    found = read_task(task, str(tmp_path), allow_partial=True)
    assert len(found.paths) == len(found.texts) == 2 and len(found.missing) == 1 and is_partial(found)


def test_more_images_than_published_are_refused(tmp_path):
    eval_files.dci(tmp_path)
    with pytest.raises(TaskDataError, match=r"2 images with 2 texts are published, and .* holds 3 with 3"):
        read("dci", tmp_path, 2)


def test_an_image_with_too_few_captions_is_told_by_the_count(tmp_path):
    eval_files.karpathy(tmp_path, "dataset_coco.json", "val2014")
    path = tmp_path / "dataset_coco.json"
    value = json.loads(path.read_text())
    value["images"][1]["sentences"] = []
    path.write_text(json.dumps(value))
    with pytest.raises(TaskDataError, match=r"3 images with 15 texts are published, and .* holds 2 with 10"):
        read("mscoco", tmp_path, 3)


def test_a_file_that_is_not_as_published_is_named_with_what_is_wrong(tmp_path):
    eval_files.dci(tmp_path / "dci")
    annotation = tmp_path / "dci/densely_captioned_images/annotations/100-data.json"
    annotation.write_text('{"image": "sa_0.jpg", "caption": "x"}')
    with pytest.raises(TaskDataError, match=r"100-data.json a record has no text `short_caption`; .*image, caption"):
        read("dci", tmp_path / "dci", 3)
    annotation.write_text("{")
    with pytest.raises(TaskDataError, match=r"100-data.json is not JSON"):
        read("dci", tmp_path / "dci", 3)
    eval_files.docci(tmp_path / "docci")
    path = tmp_path / "docci/docci_descriptions.jsonlines"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(TaskDataError, match="line 5 is not JSON"):
        read("docci", tmp_path / "docci", 2)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TaskDataError, match="is not UTF-8"):
        read("docci", tmp_path / "docci", 2)
    eval_files.karpathy(tmp_path / "coco", "dataset_coco.json", "val2014")
    (tmp_path / "coco/dataset_coco.json").write_text("[]")
    with pytest.raises(TaskDataError, match="not one of Karpathy's splits"):
        read("mscoco", tmp_path / "coco", 3)


def test_line_breaks_inside_texts_end_no_record(tmp_path):
    """U+2028 and U+0085 are line breaks to Python's splitlines, and stand in JSON strings as they are."""
    (tmp_path / "x.jsonl").write_text('{"a": "one\u2028two\x85three"}\n\n{"a": "four"}\n', encoding="utf-8")
    rows = list(Folder(str(tmp_path), "x", "y").json_lines("x.jsonl"))
    assert rows == [{"a": "one\u2028two\x85three"}, {"a": "four"}]


def test_an_image_that_cannot_be_read_is_none_and_its_neighbours_are_there(tmp_path):
    eval_files.dci(tmp_path, 5)
    (tmp_path / "densely_captioned_images/photos/sa_3.jpg").write_bytes(b"no image")
    photo = tmp_path / "densely_captioned_images/photos/sa_4.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    assert [image is None for image in read("dci", tmp_path, 5).images()] == [False, False, True, True, False]


def test_long_texts_are_given_as_the_authors_evaluation_does_to_models_of_their_form(tmp_path):
    """Full stops and line breaks become ". ", at which their tokenizer cuts; others of ours take them as they are."""
    eval_files.dci(tmp_path)
    found = read("dci", tmp_path, 3)
    pieces = subcaptions.split(found.texts[0], "authors")
    assert found.in_form("authors").texts[0] == ". ".join(pieces) and "\n" not in ". ".join(pieces)
    assert found.in_form("punkt").texts == found.texts
    eval_files.karpathy(tmp_path, "dataset_coco.json", "val2014")
    short = read("mscoco", tmp_path, 3)
    assert short.in_form("authors").texts == short.texts
