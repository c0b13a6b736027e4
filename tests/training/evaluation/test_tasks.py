"""Readers of the published evaluation sets: what they read, and their errors for files that are not as published."""

import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import ImageChops

from lotlip_data.manifests import subcaptions
from lotlip_data.training.evaluation.tasks.base import ImageTexts
from lotlip_data.training.evaluation.tasks.files import Folder, TaskDataError, read_image
from lotlip_data.training.evaluation.tasks.iiw import IIW
from lotlip_data.training.evaluation.tasks.reading import is_partial, read_task
from lotlip_data.training.evaluation.tasks.registry import TASKS
from tests.support.paths import GOLDENS
from tests.training.evaluation import published_files

WRITERS = {
    "dci": published_files.dci,
    "iiw": published_files.iiw,
    "docci": published_files.docci,
    "mscoco": lambda folder: published_files.karpathy(folder, "dataset_coco.json", "val2014"),
    "sharegpt4v-1k": published_files.sharegpt4v,
    "urban-1k": published_files.urban1k,
    "flickr30k-fg": lambda folder: published_files.fg_retrieval(folder, "Flickr30K", "flickr30k-images"),
    "mscoco-fg": lambda folder: published_files.fg_retrieval(folder, "MSCOCO", "val2014"),
}
GOLDEN = GOLDENS / "iiw.jsonl.gz"


def read(name, folder, images, **changes):
    """Read the task as if it were published with `images` images."""
    task = dataclasses.replace(TASKS[name], **({"images": images, "checksums": {}} | changes))
    return read_task(task, str(folder))


def has_images(task_images, indices, tmp_path):
    """Whether the images are those that `write_image` writes for the indices, in order."""
    for image, index in zip(task_images.images(), indices, strict=True):
        published_files.write_image(tmp_path / "expected.jpg", index)
        if ImageChops.difference(image, read_image(str(tmp_path / "expected.jpg"))).getbbox():
            return False
    return True


def test_dci_has_all_splits_and_joins_the_short_and_the_extra_caption(tmp_path):
    published_files.dci(tmp_path)
    task_images = read("dci", tmp_path, 3)
    assert task_images.texts[1].startswith(
        "A short caption of image 2.\nMore of it. "
    ) and task_images.image_of_text == (0, 1, 2)
    assert has_images(task_images, (1, 2, 0), tmp_path)  # the order of splits.json


def test_iiw_has_three_parts_and_finds_images_that_are_published_in_another_split(tmp_path):
    published_files.iiw(tmp_path)
    task_images = read("iiw", tmp_path, 4)
    assert task_images.texts == tuple(map(published_files.text, range(4))) and has_images(
        task_images, range(4), tmp_path
    )


def test_iiw_is_read_from_the_authors_image_folders(tmp_path):
    published_files.iiw(tmp_path)
    for old, new in (("images_aar", "docci_aar"), ("images", "docci"), ("densely_captioned_images/photos", "dci")):
        (tmp_path / old).rename(tmp_path / new)
    assert has_images(read("iiw", tmp_path, 4), range(4), tmp_path)


def test_iiw_reports_texts_that_are_not_those_of_the_papers_statistics(tmp_path):
    published_files.iiw(tmp_path)
    task_images = read_task(dataclasses.replace(IIW, images=4), str(tmp_path))
    assert task_images.changed_files == ("IIW-400/data.jsonl", "DOCCI_Test/data.jsonl", "DCI_Test/data.jsonl")


def test_the_612_published_texts_of_iiw_give_the_row_of_table_1():
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as lines:
        texts = tuple(json.loads(line)["IIW"] for line in lines)
    statistics = ImageTexts(
        task=IIW, paths=tuple(map(str, range(612))), texts=texts, image_of_text=tuple(range(612))
    ).statistics()
    assert (statistics["images"], statistics["texts"]) == (612, 612)
    assert (round(statistics["sub_captions_per_text"], 2), round(statistics["tokens_per_text"], 2)) == IIW.table_1_row


def test_sharegpt4v_has_the_first_records_of_sa_1b_wherever_the_archives_were_unpacked(tmp_path):
    published_files.sharegpt4v(tmp_path)
    task_images = read("sharegpt4v-1k", tmp_path, 4)
    assert task_images.texts == tuple(map(published_files.text, range(4))) and has_images(
        task_images, range(4), tmp_path
    )
    assert TASKS["sharegpt4v-1k"].read_records.keywords == {"count": 1_000}
    assert TASKS["sharegpt4v-10k"].read_records.keywords == {"count": 10_000}


def test_sharegpt4vs_file_is_read_only_as_far_as_needed(tmp_path):
    """The file has 1.5 GB: here it is truncated after the records that are needed."""
    published_files.sharegpt4v(tmp_path)
    [path] = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes()[:-100])
    folder = Folder(str(tmp_path), "x", "y")
    read_records = TASKS["sharegpt4v-1k"].read_records.func
    assert len(list(read_records(folder, count=3))) == 3
    with pytest.raises(TaskDataError, match="not a complete JSON array"):
        list(read_records(folder, count=5))


def test_a_json_array_is_read_equally_in_chunks_of_any_size(tmp_path, monkeypatch):
    rows = [{"text": "é " * i + '}, {"[]\\"', "n": [i, {"x": None}]} for i in range(20)]
    for name, indent, ascii_only in (("a.json", None, True), ("b.json", 1, False)):
        (tmp_path / name).write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        for chunk in (1, 3, 7, 1000):
            monkeypatch.setattr("lotlip_data.training.evaluation.tasks.files.CHUNK_BYTES", chunk)
            assert [entry.value for entry in Folder(str(tmp_path), "x", "y").read_json_array(name)] == rows


@pytest.mark.parametrize("name", ["flickr30k-fg", "mscoco-fg"])
def test_fg_retrieval_has_the_test_images_first_and_then_the_similar_images_of_the_pool(tmp_path, name):
    WRITERS[name](tmp_path)
    task_images = read(name, tmp_path, 3, distractors=2)
    assert task_images.texts[5:7] == ("text 0 of image 1", "text 1 of image 1") and task_images.distractors == 2
    assert task_images.image_of_text == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert has_images(task_images, range(5), tmp_path)
    statistics = task_images.statistics()
    assert (statistics["images"], statistics["distractors"], statistics["texts"]) == (3, 2, 15)


def test_fewer_similar_images_than_published_are_an_error_that_counts_both(tmp_path):
    WRITERS["flickr30k-fg"](tmp_path)
    (tmp_path / "unlabeled2017/000000000021.jpg").unlink()
    with pytest.raises(
        TaskDataError,
        match=r"3 images with 15 texts and 2 images without texts are published, but .* has 3 with 15 and 1\n1 image",
    ):
        read("flickr30k-fg", tmp_path, 3, distractors=2)


class _Code:
    """Runs code if it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.array(["1000.jpg", "1000.jpg"]), "has an empty name, or a name twice"),
        (np.array(["1000.jpg", ""]), "has an empty name, or a name twice"),
        (np.array(["1000.jpg", "1002.jpg"]), "Flickr30K_FG_ann.json, 1001 is of an image that .*npy does not name"),
        (np.array([1000, 1001]), "is not a list of file names"),
        (np.array([["1000.jpg"]]), "is not a list of file names"),
        (np.array([0x110000], np.int32).view("<U1"), "cannot be read as an array of numpy"),
        (np.array([_Code()]), "cannot be read as an array of numpy"),
        (b"no numpy", "cannot be read as an array of numpy"),
        (b"", "cannot be read as an array of numpy"),
    ],
)
def test_names_of_a_pool_that_are_not_as_published_are_an_error(tmp_path, names, message):
    WRITERS["flickr30k-fg"](tmp_path)
    path = tmp_path / "Images/Flickr30K_FG_img_filenames.npy"
    path.write_bytes(names) if isinstance(names, bytes) else np.save(path, names)
    with pytest.raises(TaskDataError, match=message) as caught:
        read("flickr30k-fg", tmp_path, 3)
    assert str(caught.value).count(TASKS["flickr30k-fg"].where) == 1


def test_an_image_of_urban_1k_without_a_text_file_is_reported(tmp_path):
    published_files.urban1k(tmp_path)
    (tmp_path / "Urban1k/caption/222.txt").unlink()
    task_images = read_task(dataclasses.replace(TASKS["urban-1k"], images=3), str(tmp_path), allow_partial=True)
    assert is_partial(task_images) and len(task_images.paths) == 2
    assert task_images.textless == (str(tmp_path / "Urban1k/image/222.jpg"),) and not task_images.missing


def test_urban_1k_uses_the_first_line_of_each_text(tmp_path):
    published_files.urban1k(tmp_path)
    task_images = read("urban-1k", tmp_path, 3)
    assert task_images.texts == tuple(map(published_files.text, range(3))) and has_images(
        task_images, range(3), tmp_path
    )
    assert read("urban-1k", tmp_path / "Urban1k", 3).texts == task_images.texts


def test_docci_has_the_test_split(tmp_path):
    published_files.docci(tmp_path)
    task_images = read("docci", tmp_path, 2)
    assert task_images.texts == (published_files.text(1), published_files.text(2)) and has_images(
        task_images, (1, 2), tmp_path
    )


@pytest.mark.parametrize(
    ("name", "file", "images"),
    [("mscoco", "dataset_coco.json", "val2014"), ("flickr30k", "dataset_flickr30k.json", "flickr30k-images")],
)
def test_karpathys_test_images_have_their_first_five_captions(tmp_path, name, file, images):
    published_files.karpathy(tmp_path, file, images)
    task_images = read(name, tmp_path, 3)
    assert task_images.texts == tuple(f"Caption {k} of image {i}." for i in (1, 2, 3) for k in range(5))
    assert task_images.image_of_text == (0,) * 5 + (1,) * 5 + (2,) * 5 and has_images(task_images, (1, 2, 3), tmp_path)


@pytest.mark.parametrize("layout", ["imagenet_folders", "imagenet_devkit", "imagenet_kaggle"])
def test_imagenets_classes_are_in_the_order_of_wordnet_ids(tmp_path, layout):
    open_clip = pytest.importorskip("open_clip")
    getattr(published_files, layout)(tmp_path)
    task_images = read("imagenet", tmp_path, 3)
    assert sorted(task_images.labels) == [0, 500, 999] and has_images(task_images, task_images.labels, tmp_path)
    assert task_images.class_names == open_clip.IMAGENET_CLASSNAMES and len(task_images.class_names) == 1000
    assert len(task_images.templates) == 80 and task_images.templates[0] == "a bad photo of a {}."


def sorted_in_kaggles_folder(folder):
    """Kaggle's archive after valprep.sh."""
    published_files.imagenet_folders(folder)
    (folder / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
    (folder / "val").rename(folder / "ILSVRC/Data/CLS-LOC/val")


def sorted_beside_kaggles_solution(folder):
    published_files.imagenet_kaggle(folder)
    shutil.rmtree(folder / "ILSVRC")
    published_files.imagenet_folders(folder)


@pytest.mark.parametrize("write", [sorted_in_kaggles_folder, sorted_beside_kaggles_solution])
def test_imagenets_sorted_images_are_found_in_every_root(tmp_path, write):
    pytest.importorskip("open_clip")
    write(tmp_path)
    task_images = read("imagenet", tmp_path, 3)
    assert task_images.labels == (0, 500, 999) and has_images(task_images, task_images.labels, tmp_path)


def test_imagenets_unsorted_images_need_the_development_kit(tmp_path):
    published_files.write_image(tmp_path / "val/ILSVRC2012_val_00000001.JPEG", 0)
    with pytest.raises(TaskDataError, match=r"there is no .*/ILSVRC2012_devkit_t12.tar.gz") as caught:
        read("imagenet", tmp_path, 3)
    assert "valprep.sh" in str(caught.value)


def test_imagenets_kit_can_be_unpacked_beside_images_in_the_folder_itself(tmp_path):
    pytest.importorskip("open_clip")
    published_files.imagenet_devkit(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz") as kit:
        kit.extractall(tmp_path, filter="data")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    for image in (tmp_path / "val").iterdir():
        image.rename(tmp_path / image.name)
    task_images = read("imagenet", tmp_path, 3)
    assert task_images.labels == (500, 0, 999) and has_images(task_images, task_images.labels, tmp_path)


def truncated(kit):
    kit.write_bytes(kit.read_bytes()[:-2000])


def with_other_files(kit):
    with tarfile.open(kit, "w:gz") as written:
        written.addfile(tarfile.TarInfo("data/meta.mat"))


def with_unknown_class_numbers(kit):
    repack(kit, "ILSVRC2012_validation_ground_truth.txt", b"17\n1002\n")


def with_html_for_meta(kit):
    repack(kit, "meta.mat", b"<html>Please log in</html>")


def with_empty_meta(kit):
    repack(kit, "meta.mat", b"")


def repack(kit, changed, content):
    with tarfile.open(kit) as old:
        files = {member.name: old.extractfile(member).read() for member in old}
    with tarfile.open(kit, "w:gz") as new:
        for name, data in files.items():
            data = content if name.endswith(changed) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncated, "cannot be unpacked"),
        (with_other_files, "cannot be unpacked"),
        (with_unknown_class_numbers, "does not give the classes"),
        (with_html_for_meta, "does not give the classes"),
        (with_empty_meta, "does not give the classes"),
    ],
)
def test_a_damaged_development_kit_of_imagenet_is_an_error_that_names_it(tmp_path, damage, message):
    published_files.imagenet_devkit(tmp_path)
    damage(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    with pytest.raises(TaskDataError, match=rf"ILSVRC2012_devkit_t12.tar.gz {message} .*; download it again"):
        read("imagenet", tmp_path, 3)


def test_class_names_of_the_folder_replace_open_clips(tmp_path):
    pytest.importorskip("open_clip")
    published_files.imagenet_folders(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {i}" for i in range(1000)))
    assert read("imagenet", tmp_path, 3).class_names[999] == "name 999"
    (tmp_path / "classnames.txt").write_text("one\ntwo")
    with pytest.raises(TaskDataError, match=r"classnames.txt has 2 lines, 0 of them blank; expected 1000 names"):
        read("imagenet", tmp_path, 3)


@pytest.mark.parametrize("name", TASKS)
def test_the_error_for_an_empty_folder_says_what_is_missing_and_where_to_get_it(tmp_path, name):
    with pytest.raises(TaskDataError) as caught:
        read_task(TASKS[name], str(tmp_path))
    assert TASKS[name].title in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "https://" in str(caught.value) and "FOLDER/" in str(caught.value)
    with pytest.raises(TaskDataError, match=r"there is no .*/none/|/none does not exist or is empty"):
        read_task(TASKS[name], str(tmp_path / "none"))


def test_fewer_images_than_published_are_an_error_without_allow_partial(tmp_path):
    published_files.dci(tmp_path)
    (tmp_path / "densely_captioned_images/photos/sa_1.jpg").unlink()
    task = TASKS["dci"]
    with pytest.raises(
        TaskDataError, match=r"7,805 images with 7,805 texts are published, but .* has 2 with 2"
    ) as caught:
        read_task(task, str(tmp_path))
    message = str(caught.value)
    assert "1 image missing: for example, there is no " in message and "photos/sa_1.jpg" in message
    assert "--allow-partial" in message
    task_images = read_task(task, str(tmp_path), allow_partial=True)
    assert len(task_images.paths) == len(task_images.texts) == 2
    assert len(task_images.missing) == 1 and is_partial(task_images)


def test_more_images_than_published_are_an_error(tmp_path):
    published_files.dci(tmp_path)
    with pytest.raises(TaskDataError, match=r"2 images with 2 texts are published, but .* has 3 with 3"):
        read("dci", tmp_path, 2)


def test_too_few_captions_are_an_error_that_gives_the_count(tmp_path):
    published_files.karpathy(tmp_path, "dataset_coco.json", "val2014")
    path = tmp_path / "dataset_coco.json"
    value = json.loads(path.read_text())
    value["images"][1]["sentences"] = []
    path.write_text(json.dumps(value))
    with pytest.raises(TaskDataError, match=r"3 images with 15 texts are published, but .* has 2 with 10"):
        read("mscoco", tmp_path, 3)


SPLITS, ANNOTATION = "densely_captioned_images/splits.json", "densely_captioned_images/annotations/100-data.json"
DOCCI, COCO, SHARE = "docci_descriptions.jsonlines", "dataset_coco.json", "share-captioner_coco_lcs_sam_1246k_1107.json"
DEEPLY_NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "dci",
            ANNOTATION,
            b'{"image": "a.jpg", "caption": "x"}',
            "100-data.json has no `short_caption`; .*image, cap",
        ),
        ("dci", ANNOTATION, b"[]", r"100-data.json is not an object but \[\]"),
        ("dci", ANNOTATION, b"{", "100-data.json cannot be parsed as JSON"),
        ("dci", ANNOTATION, b"\xff\xfe", "100-data.json is not UTF-8"),
        (
            "dci",
            ANNOTATION,
            b'{"image": "a.jpg", "short_caption": "\\ud83d"}',
            "100-data.json, short_caption contains half a",
        ),
        ("dci", SPLITS, b"[]", r"splits.json is not an object but \[\]"),
        ("dci", SPLITS, b'{"train": 3}', "splits.json, train is not a list but 3"),
        ("dci", SPLITS, b'{"train": [3]}', r"splits.json, train\[0\] is not a text but 3"),
        ("dci", SPLITS, DEEPLY_NESTED, "splits.json cannot be parsed as JSON"),
        ("docci", DOCCI, b"\n{\n", "jsonlines, line 2 cannot be parsed as JSON"),
        ("docci", DOCCI, b"[1]\n", r"jsonlines, line 1 is not an object but \[1\]"),
        ("docci", DOCCI, b"null\n", "jsonlines, line 1 is not an object but None"),
        ("iiw", "IIW-400/data.jsonl", b"[]\n", "data.jsonl, line 1 is not an object"),
        ("mscoco", COCO, b"[]", "dataset_coco.json is not an object"),
        ("mscoco", COCO, b'{"images": ["x"]}', r"images\[0\] is not an object but 'x'"),
        (
            "mscoco",
            COCO,
            b'{"images": [{"split": "test", "filename": "a", "sentences": null}]}',
            r"images\[0\], sentences is not a list but None",
        ),
        (
            "mscoco",
            COCO,
            b'{"images": [{"split": "test", "filename": "a", "sentences": ["x"]}]}',
            r"sentences\[0\] is not an object but 'x'",
        ),
        # a file that is broken at its beginning is not read to its end, which is not UTF-8 here
        ("sharegpt4v-1k", SHARE, b'["x", ' + b" " * 2**21 + b"\xff", "is not a complete JSON array of objects"),
        (
            "sharegpt4v-1k",
            SHARE,
            b'[{"image": "sa_1.jpg", "conversations": [1]}]',
            "record 1, conversations has no quest",
        ),
        ("sharegpt4v-1k", SHARE, b'[{"image": ' + DEEPLY_NESTED, "record 1 cannot be parsed as JSON"),
    ],
)
def test_a_file_that_is_not_as_published_is_an_error_with_its_location(tmp_path, name, file, content, message):
    WRITERS[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TaskDataError, match=message) as caught:
        read(name, tmp_path, 3)
    assert str(caught.value).count(TASKS[name].where) == 1


def test_a_missing_annotation_is_a_missing_image(tmp_path):
    published_files.dci(tmp_path)
    (tmp_path / ANNOTATION).unlink()
    with pytest.raises(TaskDataError, match=r"1 image missing: for example, there is no .*/100-data.json") as caught:
        read("dci", tmp_path, 3)
    assert str(caught.value).count(TASKS["dci"].where) == 1
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
def test_a_byte_order_mark_is_not_part_of_a_text(tmp_path, name, file):
    WRITERS[name](tmp_path)
    expected = read_task(TASKS[name], str(tmp_path), allow_partial=True).texts
    path = tmp_path / file
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_task(TASKS[name], str(tmp_path), allow_partial=True).texts == expected


def test_a_byte_order_mark_is_not_part_of_class_names_or_kaggles_files(tmp_path):
    pytest.importorskip("open_clip")
    published_files.imagenet_kaggle(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {i}" for i in range(1000)))
    for name in ("classnames.txt", "LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert read("imagenet", tmp_path, 3).class_names[0] == "name 0"


def test_metadata_files_of_macos_are_ignored(tmp_path):
    published_files.urban1k(tmp_path)
    (tmp_path / "Urban1k/caption/._221.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    assert len(read("urban-1k", tmp_path, 3).texts) == 3


def edit(path, change):
    """Apply `change` to the value of a JSON file, or of the first line of a JSON Lines file."""
    first, *rest = path.read_text().splitlines()
    value = json.loads(first)
    change(value)
    path.write_text("\n".join([json.dumps(value), *rest]) + "\n")


def test_an_image_with_another_name_than_the_records_is_reported(tmp_path):
    """DOCCI's train_00732 and test_00732 are two images, and the text describes only one of them."""
    published_files.iiw(tmp_path)
    task_images = read("iiw", tmp_path, 4)
    assert task_images.substituted == (str(tmp_path / "images/train_00732.jpg"),) and not task_images.missing
    published_files.write_image(tmp_path / "images/test_00732.jpg", 2)
    assert read("iiw", tmp_path, 4).substituted == ()


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("dci", SPLITS, lambda splits: splits["train"].append("100-data.json"), "sa_0.jpg is the image of 2 records"),
        (
            "dci",
            ANNOTATION,
            lambda annotation: annotation.update(image="sa_2.jpg"),
            r"sa_2.jpg is .* 2 records \(.*100-.*102-data",
        ),
        ("mscoco", COCO, lambda value: value["images"].append(value["images"][1]), r"images\[1\], .*images\[4\]"),
    ],
)
def test_an_image_of_two_records_is_an_error_with_allow_partial_too(tmp_path, name, file, change, message):
    WRITERS[name](tmp_path)
    edit(tmp_path / file, change)
    for allow_partial in (False, True):
        with pytest.raises(TaskDataError, match=message):
            read_task(TASKS[name], str(tmp_path), allow_partial=allow_partial)


def test_repeated_images_of_sharegpt4v_are_counted(tmp_path):
    """The first records are used as they are, as in the authors' code."""
    published_files.sharegpt4v(tmp_path)
    edit(tmp_path / SHARE, lambda records: records.__setitem__(2, records[0]))
    assert read("sharegpt4v-1k", tmp_path, 4).statistics()["repeated_images"] == 1


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        (
            "dci",
            ANNOTATION,
            lambda annotation: annotation.update(short_caption="", extra_caption=" "),
            "100-data.json has a blank",
        ),
        ("iiw", "IIW-400/data.jsonl", lambda row: row.update(IIW="\t"), "data.jsonl, line 1 has a blank text"),
        ("docci", DOCCI, lambda row: row.update(split="test", example_id="test_1", description=""), "line 1 has a bl"),
        (
            "mscoco",
            COCO,
            lambda value: value["images"][1]["sentences"][3].update(raw=" "),
            r"images\[1\] has a blank text",
        ),
        (
            "flickr30k-fg",
            "Annotations/Flickr30K_FG_ann.json",
            lambda value: value["1001"].__setitem__(2, " "),
            "ann.json, 1001 has a blank text",
        ),
        (
            "sharegpt4v-1k",
            SHARE,
            lambda records: records[0]["conversations"][1].update(value=""),
            "record 1 has a blank text",
        ),
    ],
)
def test_blank_texts_are_an_error(tmp_path, name, file, change, message):
    WRITERS[name](tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(TaskDataError, match=message):
        read(name, tmp_path, 4)


def test_blank_text_files_and_class_names_are_an_error(tmp_path):
    pytest.importorskip("open_clip")
    published_files.urban1k(tmp_path)
    (tmp_path / "Urban1k/caption/222.txt").write_text("\nA second line.")
    with pytest.raises(TaskDataError, match=r"222.txt has a blank text"):
        read("urban-1k", tmp_path, 3)
    published_files.imagenet_folders(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n" * 1000)
    with pytest.raises(TaskDataError, match=r"classnames.txt has 1000 lines, 1000 of them blank"):
        read("imagenet", tmp_path, 3)


def test_classes_with_different_numbers_of_images_are_an_error_without_allow_partial(tmp_path):
    pytest.importorskip("open_clip")
    published_files.imagenet_folders(tmp_path)
    folders = [tmp_path / "val" / wordnet_id for wordnet_id in published_files.wordnet_ids()]
    (folders[500] / "ILSVRC2012_val_00000500.JPEG").rename(folders[999] / "ILSVRC2012_val_00000500.JPEG")
    with pytest.raises(
        TaskDataError, match=r"1 classes have more images than published: for example, class 999 \(.*\) has 2"
    ):
        read("imagenet", tmp_path, 3)
    task_images = read_task(dataclasses.replace(TASKS["imagenet"], images=3), str(tmp_path), allow_partial=True)
    assert is_partial(task_images) and task_images.labels == (0, 999, 999)


def test_archives_with_other_checksums_are_reported(tmp_path):
    """The archives are in the folder or beside it; an archive that does not exist is not reported."""
    folder = tmp_path / "dci"
    published_files.dci(folder)
    known = {"a.tar": f"md5:{hashlib.md5(b'a').hexdigest()}", "b.zip": f"sha256:{hashlib.sha256(b'b').hexdigest()}"}
    task = dataclasses.replace(TASKS["dci"], images=3, checksums={**known, "c.tar": "md5:0"})
    places = {"a.tar": folder / "a.tar", "b.zip": tmp_path / "b.zip"}
    for name, place in places.items():
        place.write_bytes(name[:1].encode())
    assert read_task(task, str(folder)).changed_files == ()
    for place in places.values():
        place.write_bytes(b"cut off")
    assert read_task(task, str(folder)).changed_files == ("a.tar", "b.zip")


def test_every_checksum_has_a_known_algorithm_and_its_length():
    checksums = [checksum for task in TASKS.values() for checksum in task.checksums.values()]
    for algorithm, _, digest in (checksum.partition(":") for checksum in checksums):
        hash_name = "sha1" if algorithm == "git" else algorithm
        assert len(digest) == len(hashlib.new(hash_name, b"").hexdigest()) and int(digest, 16)
    assert len(checksums) == 7 + 1 + 4 + 8 + 7 + 5


def test_the_id_of_a_file_in_git_is_compared(tmp_path):
    """`printf 'hello\\n' | git hash-object --stdin` prints this id."""
    published_files.dci(tmp_path)
    (tmp_path / "a.json").write_bytes(b"hello\n")
    task = dataclasses.replace(TASKS["dci"], images=3)
    for digest, changed in (("ce013625030ba8dba906f756967f9e9ca394464a", ()), ("0" * 40, ("a.json",))):
        task = dataclasses.replace(task, checksums={"a.json": f"git:{digest}"})
        assert read_task(task, str(tmp_path)).changed_files == changed


def test_the_stamp_depends_on_the_images_and_on_nothing_else(tmp_path):
    published_files.iiw(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    stamps = [read("iiw", tmp_path / name, 4).stamp for name in ("one", "two", "two")]
    assert stamps[0] == stamps[1] == stamps[2] and stamps[0]  # copied with their times
    published_files.write_image(tmp_path / "two/images/another.jpg", 7)
    assert read("iiw", tmp_path / "two", 4).stamp == stamps[0]
    published_files.write_image(tmp_path / "two/images/test_00731.jpg", 8)
    changed = read("iiw", tmp_path / "two", 4).stamp
    (tmp_path / "one/images/train_00732.jpg").rename(tmp_path / "one/images/test_00732.jpg")
    assert len({stamps[0], changed, read("iiw", tmp_path / "one", 4).stamp}) == 3


def test_unicode_line_breaks_in_texts_do_not_end_a_line(tmp_path):
    """U+2028 and U+0085 are line breaks for Python's splitlines, and need no escape in JSON strings."""
    (tmp_path / "x.jsonl").write_text('{"a": "one\u2028two\x85three"}\n\n{"a": "four"}\n', encoding="utf-8")
    rows = [entry.value for entry in Folder(str(tmp_path), "x", "y").read_json_lines("x.jsonl")]
    assert rows == [{"a": "one\u2028two\x85three"}, {"a": "four"}]


def test_a_damaged_image_is_none_and_the_others_are_read(tmp_path):
    published_files.dci(tmp_path, 5)
    (tmp_path / "densely_captioned_images/photos/sa_3.jpg").write_bytes(b"no image")
    photo = tmp_path / "densely_captioned_images/photos/sa_4.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    assert [image is None for image in read("dci", tmp_path, 5).images()] == [False, False, True, True, False]


def test_errors_of_the_storage_are_raised_and_not_counted_as_damaged_images(tmp_path, monkeypatch):
    """An outage must end the evaluation: with --allow-partial, it would make the set smaller."""
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "nothing.jpg"):
        with pytest.raises(TaskDataError, match=f"{name} cannot be read as a file"):
            read_image(str(tmp_path / name))

    def refuse(_):
        raise PermissionError("no")

    monkeypatch.setattr("lotlip_data.manifests.storage.read_bytes", refuse)
    with pytest.raises(PermissionError):
        read_image(str(tmp_path / "any.jpg"))


@pytest.mark.parametrize("error", [OSError, ValueError, SyntaxError, RuntimeError, TypeError])
def test_every_error_of_pillow_means_a_damaged_image(tmp_path, monkeypatch, error):
    def fail(_):
        raise error("broken")

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr("PIL.Image.open", fail)
    assert read_image(str(tmp_path / "a.jpg")) is None


def test_models_of_the_authors_text_form_get_long_texts_as_in_the_authors_evaluation(tmp_path):
    """Full stops and line breaks become ". ", at which their tokenizer splits. Other forms get the texts unchanged."""
    published_files.dci(tmp_path)
    task_images = read("dci", tmp_path, 3)
    pieces = subcaptions.split(task_images.texts[0], "authors")
    assert task_images.in_form("authors").texts[0] == ". ".join(pieces) and "\n" not in ". ".join(pieces)
    assert task_images.in_form("punkt").texts == task_images.texts
    forms = [task_images.in_form(form) for form in ("authors", "punkt")]
    assert [form.text_form for form in forms] == ["authors", "published"]
    assert len({form.queries for form in forms}) == 1, "the same queries in another form"
    published_files.karpathy(tmp_path, "dataset_coco.json", "val2014")
    short = read("mscoco", tmp_path, 3)
    assert short.in_form("authors").texts == short.texts
