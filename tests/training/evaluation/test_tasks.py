"""Readers of the published evaluation sets: what they take, and what they say when something is wrong."""

import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import tarfile

import pytest
from PIL import ImageChops

from lotlip_data.manifests import subcaptions
from lotlip_data.training.evaluation.tasks.base import ImageTexts, is_partial, read_task
from lotlip_data.training.evaluation.tasks.files import Folder, TaskDataError, read_image
from lotlip_data.training.evaluation.tasks.iiw import IIW
from lotlip_data.training.evaluation.tasks.registry import TASKS
from tests.support.paths import GOLDENS
from tests.training.evaluation import published_files as eval_files

WRITE = {
    "dci": eval_files.dci,
    "iiw": eval_files.iiw,
    "docci": eval_files.docci,
    "mscoco": lambda folder: eval_files.karpathy(folder, "dataset_coco.json", "val2014"),
    "sharegpt4v-1k": eval_files.sharegpt4v,
    "urban-1k": eval_files.urban1k,
}
GOLDEN = GOLDENS / "iiw.jsonl.gz"


def read(name, folder, images):
    """The task as if it were published with so many images."""
    return read_task(dataclasses.replace(TASKS[name], images=images, checksums={}), str(folder))


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
    found = ImageTexts(
        task=IIW, paths=tuple(map(str, range(612))), texts=texts, image_of_text=tuple(range(612))
    ).statistics()
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
            monkeypatch.setattr("lotlip_data.training.evaluation.tasks.files.CHUNK", chunk)
            assert [entry.value for entry in Folder(str(tmp_path), "x", "y").json_array(name)] == rows


def test_an_image_of_urban_1k_whose_text_is_missing_is_told(tmp_path):
    eval_files.urban1k(tmp_path)
    (tmp_path / "Urban1k/caption/222.txt").unlink()
    found = read_task(dataclasses.replace(TASKS["urban-1k"], images=3), str(tmp_path), allow_partial=True)
    assert is_partial(found) and len(found.paths) == 2
    assert found.textless == (str(tmp_path / "Urban1k/image/222.jpg"),) and not found.missing


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


@pytest.mark.parametrize("layout", ["imagenet_folders", "imagenet_devkit", "imagenet_kaggle"])
def test_imagenets_classes_are_in_the_order_of_wordnet_ids(tmp_path, layout):
    open_clip = pytest.importorskip("open_clip")
    getattr(eval_files, layout)(tmp_path)
    found = read("imagenet", tmp_path, 3)
    assert sorted(found.labels) == [0, 500, 999] and same(found, found.labels, tmp_path)
    assert found.class_names == open_clip.IMAGENET_CLASSNAMES and len(found.class_names) == 1000
    assert len(found.templates) == 80 and found.templates[0] == "a bad photo of a {}."


def sorted_in_place_of_kaggles(folder):
    """Kaggle's archive after valprep.sh."""
    eval_files.imagenet_folders(folder)
    (folder / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
    (folder / "val").rename(folder / "ILSVRC/Data/CLS-LOC/val")


def sorted_beside_kaggles_solution(folder):
    eval_files.imagenet_kaggle(folder)
    shutil.rmtree(folder / "ILSVRC")
    eval_files.imagenet_folders(folder)


@pytest.mark.parametrize("write", [sorted_in_place_of_kaggles, sorted_beside_kaggles_solution])
def test_imagenets_sorted_images_are_found_wherever_they_lie(tmp_path, write):
    pytest.importorskip("open_clip")
    write(tmp_path)
    found = read("imagenet", tmp_path, 3)
    assert found.labels == (0, 500, 999) and same(found, found.labels, tmp_path)


def test_imagenets_images_as_its_archive_has_them_need_the_kit_or_to_be_sorted(tmp_path):
    eval_files.write_image(tmp_path / "val/ILSVRC2012_val_00000001.JPEG", 0)
    with pytest.raises(TaskDataError, match=r"there is no .*/ILSVRC2012_devkit_t12.tar.gz") as caught:
        read("imagenet", tmp_path, 3)
    assert "valprep.sh" in str(caught.value)


def test_imagenets_kit_may_be_unpacked_and_lie_beside_images_in_the_folder_itself(tmp_path):
    pytest.importorskip("open_clip")
    eval_files.imagenet_devkit(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz") as kit:
        kit.extractall(tmp_path, filter="data")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    for image in (tmp_path / "val").iterdir():
        image.rename(tmp_path / image.name)
    found = read("imagenet", tmp_path, 3)
    assert found.labels == (500, 0, 999) and same(found, found.labels, tmp_path)


def cut(kit):
    kit.write_bytes(kit.read_bytes()[:-2000])


def of_another_kind(kit):
    with tarfile.open(kit, "w:gz") as written:
        written.addfile(tarfile.TarInfo("data/meta.mat"))


def numbers_of_nothing(kit):
    repacked(kit, "ILSVRC2012_validation_ground_truth.txt", b"17\n1002\n")


def not_of_matlab(kit):
    repacked(kit, "meta.mat", b"<html>Please log in</html>")


def without_classes(kit):
    repacked(kit, "meta.mat", b"")


def repacked(kit, changed, content):
    with tarfile.open(kit) as old:
        files = {one.name: old.extractfile(one).read() for one in old}
    with tarfile.open(kit, "w:gz") as new:
        for name, data in files.items():
            data = content if name.endswith(changed) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (cut, "cannot be unpacked"),
        (of_another_kind, "cannot be unpacked"),
        (numbers_of_nothing, "does not say the classes"),
        (not_of_matlab, "does not say the classes"),
        (without_classes, "does not say the classes"),
    ],
)
def test_a_damaged_kit_of_imagenet_is_named(tmp_path, damage, complaint):
    eval_files.imagenet_devkit(tmp_path)
    damage(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    with pytest.raises(TaskDataError, match=rf"ILSVRC2012_devkit_t12.tar.gz {complaint} .*; fetch it again"):
        read("imagenet", tmp_path, 3)


def test_class_names_of_the_folder_take_the_place_of_open_clips(tmp_path):
    pytest.importorskip("open_clip")
    eval_files.imagenet_folders(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {i}" for i in range(1000)))
    assert read("imagenet", tmp_path, 3).class_names[999] == "name 999"
    (tmp_path / "classnames.txt").write_text("one\ntwo")
    with pytest.raises(TaskDataError, match=r"classnames.txt has 2 lines, 0 of them blank, not 1000 names"):
        read("imagenet", tmp_path, 3)


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_folder_is_told_what_belongs_there_and_where_to_get_it(tmp_path, name):
    with pytest.raises(TaskDataError) as caught:
        read_task(TASKS[name], str(tmp_path))
    assert TASKS[name].title in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "https://" in str(caught.value) and "FOLDER/" in str(caught.value)
    with pytest.raises(TaskDataError, match=r"there is no .*/none/|/none does not exist, or nothing is in it"):
        read_task(TASKS[name], str(tmp_path / "none"))


def test_fewer_images_than_published_are_refused_unless_a_part_is_wanted(tmp_path):
    eval_files.dci(tmp_path)
    (tmp_path / "densely_captioned_images/photos/sa_1.jpg").unlink()
    task = TASKS["dci"]
    with pytest.raises(
        TaskDataError, match=r"7,805 images with 7,805 texts are published, and .* holds 2 with 2"
    ) as caught:
        read_task(task, str(tmp_path))
    assert "1 images are missing: there is no " in str(caught.value) and "photos/sa_1.jpg" in str(caught.value)
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


SPLITS, ANNOTATION = "densely_captioned_images/splits.json", "densely_captioned_images/annotations/100-data.json"
DOCCI, COCO, SHARE = "docci_descriptions.jsonlines", "dataset_coco.json", "share-captioner_coco_lcs_sam_1246k_1107.json"
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("name", "file", "content", "complaint"),
    [
        (
            "dci",
            ANNOTATION,
            b'{"image": "a.jpg", "caption": "x"}',
            "100-data.json has no `short_caption`; .*image, cap",
        ),
        ("dci", ANNOTATION, b"[]", r"100-data.json is no object, but \[\]"),
        ("dci", ANNOTATION, b"{", "100-data.json is not JSON"),
        ("dci", ANNOTATION, b"\xff\xfe", "100-data.json is not UTF-8"),
        (
            "dci",
            ANNOTATION,
            b'{"image": "a.jpg", "short_caption": "\\ud83d"}',
            "100-data.json, short_caption has half a",
        ),
        ("dci", SPLITS, b"[]", r"splits.json is no object, but \[\]"),
        ("dci", SPLITS, b'{"train": 3}', "splits.json, train is no list, but 3"),
        ("dci", SPLITS, b'{"train": [3]}', r"splits.json, train\[0\] is no text, but 3"),
        ("dci", SPLITS, DEEP, "splits.json is not JSON that can be read"),
        ("docci", DOCCI, b"\n{\n", "jsonlines, line 2 is not JSON"),
        ("docci", DOCCI, b"[1]\n", r"jsonlines, line 1 is no object, but \[1\]"),
        ("docci", DOCCI, b"null\n", "jsonlines, line 1 is no object, but None"),
        ("iiw", "IIW-400/data.jsonl", b"[]\n", "data.jsonl, line 1 is no object"),
        ("mscoco", COCO, b"[]", "dataset_coco.json is no object"),
        ("mscoco", COCO, b'{"images": ["x"]}', r"images\[0\] is no object, but 'x'"),
        (
            "mscoco",
            COCO,
            b'{"images": [{"split": "test", "filename": "a", "sentences": null}]}',
            r"images\[0\], sentences is no list, but None",
        ),
        (
            "mscoco",
            COCO,
            b'{"images": [{"split": "test", "filename": "a", "sentences": ["x"]}]}',
            r"sentences\[0\] is no object, but 'x'",
        ),
        # what is broken at its beginning is not read to its end, which is no UTF-8 here
        ("sharegpt4v-1k", SHARE, b'["x", ' + b" " * 2**21 + b"\xff", "no whole JSON array of objects"),
        (
            "sharegpt4v-1k",
            SHARE,
            b'[{"image": "sa_1.jpg", "conversations": [1]}]',
            "record 1, conversations has no quest",
        ),
        ("sharegpt4v-1k", SHARE, b'[{"image": ' + DEEP, "record 1 is not JSON that can be read"),
    ],
)
def test_what_is_not_as_published_is_named_once_with_its_place(tmp_path, name, file, content, complaint):
    WRITE[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TaskDataError, match=complaint) as caught:
        read(name, tmp_path, 3)
    assert str(caught.value).count("Get https://") == 1


def test_a_missing_annotation_is_a_missing_image(tmp_path):
    eval_files.dci(tmp_path)
    (tmp_path / ANNOTATION).unlink()
    with pytest.raises(TaskDataError, match=r"1 images are missing: there is no .*/100-data.json") as caught:
        read("dci", tmp_path, 3)
    assert str(caught.value).count("Get https://") == 1
    assert len(read_task(TASKS["dci"], str(tmp_path), allow_partial=True).paths) == 2


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dci", ANNOTATION),
        ("docci", DOCCI),
        ("mscoco", COCO),
        ("sharegpt4v-1k", SHARE),
        ("urban-1k", "Urban1k/caption/221.txt"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name, file):
    WRITE[name](tmp_path)
    expected = read_task(TASKS[name], str(tmp_path), allow_partial=True).texts
    path = tmp_path / file
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_task(TASKS[name], str(tmp_path), allow_partial=True).texts == expected


def test_a_byte_order_mark_is_no_part_of_class_names_nor_of_kaggles_solution(tmp_path):
    pytest.importorskip("open_clip")
    eval_files.imagenet_kaggle(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {i}" for i in range(1000)))
    for name in ("classnames.txt", "LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert read("imagenet", tmp_path, 3).class_names[0] == "name 0"


def test_what_macos_keeps_beside_files_is_none_of_them(tmp_path):
    eval_files.urban1k(tmp_path)
    (tmp_path / "Urban1k/caption/._221.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    assert len(read("urban-1k", tmp_path, 3).texts) == 3


def edit(path, change):
    """The JSON file, or the first line of a JSON lines file, as `change` leaves it."""
    first, *rest = path.read_text().splitlines()
    value = json.loads(first)
    change(value)
    path.write_text("\n".join([json.dumps(value), *rest]) + "\n")


def test_an_image_under_another_name_than_the_records_is_told(tmp_path):
    """DOCCI's train_00732 and test_00732 are two images: only one of them is the one that is described."""
    eval_files.iiw(tmp_path)
    found = read("iiw", tmp_path, 4)
    assert found.substituted == (str(tmp_path / "images/train_00732.jpg"),) and not found.missing
    eval_files.write_image(tmp_path / "images/test_00732.jpg", 2)
    assert read("iiw", tmp_path, 4).substituted == ()


@pytest.mark.parametrize(
    ("name", "file", "change", "complaint"),
    [
        ("dci", SPLITS, lambda splits: splits["train"].append("100-data.json"), "sa_0.jpg is the image of 2 records"),
        ("dci", ANNOTATION, lambda one: one.update(image="sa_2.jpg"), r"sa_2.jpg is .* 2 records \(.*100-.*102-data"),
        ("mscoco", COCO, lambda value: value["images"].append(value["images"][1]), r"images\[1\], .*images\[4\]"),
    ],
)
def test_an_image_of_two_records_is_refused_whatever_the_count(tmp_path, name, file, change, complaint):
    WRITE[name](tmp_path)
    edit(tmp_path / file, change)
    for allow_partial in (False, True):
        with pytest.raises(TaskDataError, match=complaint):
            read_task(TASKS[name], str(tmp_path), allow_partial=allow_partial)


def test_repeated_images_of_sharegpt4v_are_counted(tmp_path):
    """Its first records are taken as they come, as the authors do."""
    eval_files.sharegpt4v(tmp_path)
    edit(tmp_path / SHARE, lambda records: records.__setitem__(2, records[0]))
    assert read("sharegpt4v-1k", tmp_path, 4).statistics()["repeated_images"] == 1


@pytest.mark.parametrize(
    ("name", "file", "change", "complaint"),
    [
        ("dci", ANNOTATION, lambda one: one.update(short_caption="", extra_caption=" "), "100-data.json has a blank"),
        ("iiw", "IIW-400/data.jsonl", lambda one: one.update(IIW="\t"), "data.jsonl, line 1 has a blank text"),
        ("docci", DOCCI, lambda one: one.update(split="test", example_id="test_1", description=""), "line 1 has a bl"),
        ("mscoco", COCO, lambda one: one["images"][1]["sentences"][3].update(raw=" "), r"images\[1\] has a blank text"),
        ("sharegpt4v-1k", SHARE, lambda one: one[0]["conversations"][1].update(value=""), "record 1 has a blank text"),
    ],
)
def test_blank_texts_are_refused(tmp_path, name, file, change, complaint):
    WRITE[name](tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(TaskDataError, match=complaint):
        read(name, tmp_path, 4)


def test_blank_files_and_class_names_are_refused(tmp_path):
    pytest.importorskip("open_clip")
    eval_files.urban1k(tmp_path)
    (tmp_path / "Urban1k/caption/222.txt").write_text("\nA second line.")
    with pytest.raises(TaskDataError, match=r"222.txt has a blank text"):
        read("urban-1k", tmp_path, 3)
    eval_files.imagenet_folders(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n" * 1000)
    with pytest.raises(TaskDataError, match=r"classnames.txt has 1000 lines, 1000 of them blank"):
        read("imagenet", tmp_path, 3)


def test_classes_have_equally_many_images_unless_a_part_is_wanted(tmp_path):
    pytest.importorskip("open_clip")
    eval_files.imagenet_folders(tmp_path)
    folders = [tmp_path / "val" / one for one in eval_files.wordnet_ids()]
    (folders[500] / "ILSVRC2012_val_00000500.JPEG").rename(folders[999] / "ILSVRC2012_val_00000500.JPEG")
    with pytest.raises(TaskDataError, match=r"1 classes have more images than the others; class 999 \(.*\) has 2"):
        read("imagenet", tmp_path, 3)
    found = read_task(dataclasses.replace(TASKS["imagenet"], images=3), str(tmp_path), allow_partial=True)
    assert is_partial(found) and found.labels == (0, 999, 999)


def test_archives_are_held_to_their_checksums_where_they_lie(tmp_path):
    """In the folder or beside it; those that are not there are none."""
    folder = tmp_path / "dci"
    eval_files.dci(folder)
    known = {"a.tar": f"md5:{hashlib.md5(b'a').hexdigest()}", "b.zip": f"sha256:{hashlib.sha256(b'b').hexdigest()}"}
    task = dataclasses.replace(TASKS["dci"], images=3, checksums={**known, "c.tar": "md5:0"})
    places = {"a.tar": folder / "a.tar", "b.zip": tmp_path / "b.zip"}
    for name, place in places.items():
        place.write_bytes(name[:1].encode())
    assert read_task(task, str(folder)).changed == ()
    for place in places.values():
        place.write_bytes(b"cut off")
    assert read_task(task, str(folder)).changed == ("a.tar", "b.zip")


def test_every_checksum_is_one_that_can_be_computed():
    known = [one for task in TASKS.values() for one in task.checksums.values()]
    for algorithm, _, digest in (one.partition(":") for one in known):
        assert len(digest) == len(hashlib.new(algorithm, b"").hexdigest()) and int(digest, 16)
    assert len(known) == 7


def test_the_stamp_changes_with_the_images_and_with_nothing_else(tmp_path):
    eval_files.iiw(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    stamps = [read("iiw", tmp_path / name, 4).stamp for name in ("one", "two", "two")]
    assert stamps[0] == stamps[1] == stamps[2] and stamps[0]  # copied with their times
    eval_files.write_image(tmp_path / "two/images/another.jpg", 7)
    assert read("iiw", tmp_path / "two", 4).stamp == stamps[0]
    eval_files.write_image(tmp_path / "two/images/test_00731.jpg", 8)
    changed = read("iiw", tmp_path / "two", 4).stamp
    (tmp_path / "one/images/train_00732.jpg").rename(tmp_path / "one/images/test_00732.jpg")
    assert len({stamps[0], changed, read("iiw", tmp_path / "one", 4).stamp}) == 3


def test_line_breaks_inside_texts_end_no_record(tmp_path):
    """U+2028 and U+0085 are line breaks to Python's splitlines, and stand in JSON strings as they are."""
    (tmp_path / "x.jsonl").write_text('{"a": "one\u2028two\x85three"}\n\n{"a": "four"}\n', encoding="utf-8")
    rows = [entry.value for entry in Folder(str(tmp_path), "x", "y").json_lines("x.jsonl")]
    assert rows == [{"a": "one\u2028two\x85three"}, {"a": "four"}]


def test_an_image_that_cannot_be_read_is_none_and_its_neighbours_are_there(tmp_path):
    eval_files.dci(tmp_path, 5)
    (tmp_path / "densely_captioned_images/photos/sa_3.jpg").write_bytes(b"no image")
    photo = tmp_path / "densely_captioned_images/photos/sa_4.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    assert [image is None for image in read("dci", tmp_path, 5).images()] == [False, False, True, True, False]


def test_errors_of_the_storage_are_no_damaged_images(tmp_path, monkeypatch):
    """An outage must end the evaluation: with --allow-partial it would make the set smaller."""
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "nothing.jpg"):
        with pytest.raises(TaskDataError, match=f"{name} is no file that can be read"):
            read_image(str(tmp_path / name))

    def refuse(_):
        raise PermissionError("no")

    monkeypatch.setattr("lotlip_data.manifests.storage.read_bytes", refuse)
    with pytest.raises(PermissionError):
        read_image(str(tmp_path / "any.jpg"))


@pytest.mark.parametrize("error", [OSError, ValueError, SyntaxError, RuntimeError, TypeError])
def test_whatever_pillow_raises_of_an_image_is_a_damaged_one(tmp_path, monkeypatch, error):
    def fail(_):
        raise error("broken")

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr("PIL.Image.open", fail)
    assert read_image(str(tmp_path / "a.jpg")) is None


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
