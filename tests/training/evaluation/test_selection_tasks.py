"""Readers of the sets whose captions are selected: what they read, how they crop, and their errors."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageChops

from lotlip_data.training.evaluation.selection import Choice
from lotlip_data.training.evaluation.tasks.fg_ovd import ATTRIBUTE_FILES, DIFFICULTY_FILES
from lotlip_data.training.evaluation.tasks.files import TaskDataError, read_image
from lotlip_data.training.evaluation.tasks.reading import is_partial, read_task
from lotlip_data.training.evaluation.tasks.regions import Box, read_region
from lotlip_data.training.evaluation.tasks.registry import TASKS
from tests.training.evaluation import published_files

WRITERS = {
    "sugarcrepe": published_files.sugarcrepe,
    "sugarcrepe-pp": published_files.sugarcrepe_pp,
    "fg-ovd": lambda folder: published_files.fg_ovd(folder, DIFFICULTY_FILES),
    "fg-ovd-attributes": lambda folder: published_files.fg_ovd(folder, ATTRIBUTE_FILES),
    "sdci": published_files.sdci,
}


def read(name, folder, allow_partial=False, **changes):
    """Read the task as if nothing were known of the published numbers of queries."""
    categories = dict.fromkeys(TASKS[name].categories)
    task = dataclasses.replace(TASKS[name], **({"categories": categories, "checksums": {}} | changes))
    return read_task(task, str(folder), allow_partial=allow_partial)


def is_equal(first, second):
    return first.size == second.size and not ImageChops.difference(first, second).getbbox()


def test_sugarcrepe_has_one_right_and_one_wrong_caption_per_query(tmp_path):
    published_files.sugarcrepe(tmp_path)
    read_set = read("sugarcrepe", tmp_path)
    assert read_set.choices[1] == Choice("add_att", ("add_att caption 1.",), ("add_att wrong caption 1.",))
    assert read_set.query_counts == dict.fromkeys(TASKS["sugarcrepe"].categories, 2)
    assert read_set.image_of_choice[::2] == (0,) * 7, "the first query of each category has the same image"
    assert len(read_set.paths) == 8 and read_set.picture_of_image == list(range(8))
    assert is_equal(next(iter(read_set.images())), read_image(read_set.paths[0]))
    assert read_set.has_overall and not read_set.has_text_only and not is_partial(read_set)


def test_sugarcrepe_pp_has_two_right_captions_per_query(tmp_path):
    published_files.sugarcrepe_pp(tmp_path)
    read_set = read("sugarcrepe-pp", tmp_path)
    right = ("replace_att caption 0.", "replace_att in other words, caption 0.")
    assert read_set.choices[0] == Choice("replace_att", right, ("replace_att wrong caption 0.",))
    assert set(read_set.query_counts) == {"replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"}
    assert read_set.has_text_only


def test_fg_ovd_has_a_region_per_annotation_and_its_captions_by_their_ids(tmp_path):
    WRITERS["fg-ovd"](tmp_path)
    read_set = read("fg-ovd", tmp_path)
    assert read_set.choices[0] == Choice("hard", ("A red cup. (hard)",), ("A blue cup. (hard)", "A green cup. (hard)"))
    assert read_set.query_counts == {"hard": 3, "medium": 3, "easy": 3, "trivial": 3}
    assert read_set.image_of_choice == (0, 1, 2) * 4, "a region of several benchmarks is one image"
    assert read_set.picture_of_image == [0, 0, 1]


def test_fg_ovd_crops_as_its_authors_evaluation_of_clip(tmp_path):
    """The formula of lorebianchi98/FG-CLIP at scale 1: floor and ceil, and the limits of the picture."""
    WRITERS["fg-ovd"](tmp_path)
    read_set = read("fg-ovd", tmp_path)
    for region, path, (x, y, width, height) in zip(
        read_set.images(), read_set.paths, (*published_files.FG_OVD_BOXES, [4.0, 4.0, 92.5, 90.0]), strict=True
    ):
        corners = np.array([x, y, x + width, y + height])
        rounded = np.concatenate([np.floor(corners[:2]), np.ceil(corners[2:])]).astype(int)
        expected = np.asarray(read_image(path))[rounded[1] : rounded[3], rounded[0] : rounded[2]]
        assert np.array_equal(np.asarray(region), expected)


def test_sdci_reads_the_test_split_with_the_authors_rules(tmp_path):
    published_files.sdci(tmp_path)
    read_set = read("sdci", tmp_path)
    assert read_set.query_counts == {
        **dict.fromkeys(("all_scm", "all_neg", "pick5_scm", "pick5_neg", "hardest_neg"), 12),
        "base_scm": 3,
        "base_neg": 3,
    }
    by_category = {}
    for choice, image in zip(read_set.choices, read_set.image_of_choice, strict=True):
        by_category.setdefault(choice.category, []).append((image, choice))
    image, second = by_category["all_scm"][1]
    assert second.right == ("image 1 m-0-sc caption 0",) and len(second.wrong) == 7
    assert second.wrong[0] == "image 1 base caption 0" and second.wrong[3] == "image 2 base caption 0"
    assert len(by_category["all_scm"][8][1].wrong) == 3, "the last batch has four entries"
    assert len(by_category["pick5_scm"][1][1].right) == 5 and len(by_category["pick5_scm"][1][1].wrong) == 35
    assert by_category["all_neg"][1] == (
        image,
        Choice("all_neg", ("image 1 m-0-sc caption 0",), ("image 1 m-0-sc wrong swaps 0",)),
    )
    assert by_category["hardest_neg"][1][1].wrong == ("image 1 m-0-sc wrong swaps 1",)
    assert [choice.right for _, choice in by_category["base_neg"]] == [
        (f"image {i} base caption 0",) for i in (1, 2, 3)
    ]
    assert not read_set.has_overall and len(read_set.paths) == 12 and len(set(read_set.paths)) == 3


def test_sdci_crops_the_bounds_of_a_mask_with_a_margin(tmp_path):
    published_files.sdci(tmp_path, count=1)
    read_set = read("sdci", tmp_path)
    whole, first, *_ = read_set.images()
    picture = np.asarray(read_image(read_set.paths[0]))
    assert np.array_equal(np.asarray(whole), picture)
    # bounds (0, 5) to (240, 300): margins of int(0.15 * 240) and int(0.15 * 295), cut at the edges
    assert np.array_equal(np.asarray(first), picture[0:344, 0:276])


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda annotation: annotation.pop("summaries"), (8, 2)),
        (lambda annotation: annotation.update(negatives=None), (8, 2)),
        (lambda annotation: annotation["negatives"].update({"base": None}), (8, 2)),
        (lambda annotation: annotation["summaries"].pop("m-1-sc"), (8, 3)),
        (lambda annotation: annotation["clip_scores"].pop("m-2-sc"), (8, 3)),
        (lambda annotation: annotation["negatives"]["m-0-sc"].update(swaps=[]), (8, 3)),
        (lambda annotation: annotation.update(negatives={"base": annotation["negatives"]["base"]}), (8, 3)),
    ],
)
def test_an_incomplete_annotation_of_sdci_is_left_out_as_a_whole_and_reported(tmp_path, change, counts):
    published_files.sdci(tmp_path)
    path = tmp_path / "densely_captioned_images/annotations/102-data.json"
    annotation = json.loads(path.read_text())
    change(annotation)
    path.write_text(json.dumps(annotation))
    read_set = read("sdci", tmp_path)
    assert (read_set.query_counts["all_scm"], read_set.query_counts["base_neg"]) == counts
    assert len(read_set.textless) == 1 and read_set.textless[0].endswith("photos/sa_2.jpg")


def test_an_entry_of_sdci_with_four_captions_is_in_all_tests_but_pick5(tmp_path):
    published_files.sdci(tmp_path)
    path = tmp_path / "densely_captioned_images/annotations/102-data.json"
    path.write_text(json.dumps(published_files.sdci_annotation(2, masks=3, captions=4)))
    counts = read("sdci", tmp_path).query_counts
    assert (counts["all_neg"], counts["pick5_neg"], counts["pick5_scm"]) == (12, 8, 8)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_image_is_named_once_and_its_queries_are_left_out_with_allow_partial(tmp_path, name):
    WRITERS[name](tmp_path)
    whole = read(name, tmp_path)
    first = whole.paths[0]
    (tmp_path / first).unlink()
    with pytest.raises(TaskDataError, match=r"1 image missing: for example, there is no .*\.jpg") as caught:
        read(name, tmp_path)
    assert "does not have the whole published set" in str(caught.value) and "--allow-partial" in str(caught.value)
    part = read(name, tmp_path, allow_partial=True)
    assert is_partial(part) and first not in part.paths and len(part.missing) == 1
    assert 0 < len(part.choices) < len(whole.choices)


@pytest.mark.parametrize("name", WRITERS)
def test_another_number_of_queries_than_published_is_an_error_with_the_category(tmp_path, name):
    WRITERS[name](tmp_path)
    category = next(iter(TASKS[name].categories))
    with pytest.raises(TaskDataError, match=rf"{category}: 99 queries are published, but there are \d+"):
        read(name, tmp_path, categories={category: 99})
    assert is_partial(read(name, tmp_path, allow_partial=True, categories={category: 99}))


CREPE, OVD = "data/add_att.json", "benchmarks/1_attributes.json"
SDCI = "densely_captioned_images/annotations/101-data.json"


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("sugarcrepe", CREPE, lambda value: value["0"].pop("caption"), "add_att.json, 0 has no `caption`"),
        ("sugarcrepe", CREPE, lambda value: value["2"].update(caption=" "), "add_att.json, 2 has a blank text"),
        ("sugarcrepe", CREPE, lambda value: value["0"].update(negative_caption=None), "is not a text but None"),
        ("sugarcrepe", CREPE, lambda value: value.update({"0": []}), r"add_att.json, 0 is not an object but \[\]"),
        ("sugarcrepe-pp", "data/swap_obj.json", lambda value: value[0].pop("caption2"), r"\[0\] has no `caption2`"),
        ("sugarcrepe-pp", "data/swap_obj.json", lambda value: value[1].update(filename=3), "filename is not a text"),
        ("fg-ovd", OVD, lambda value: value.pop("annotations"), "1_attributes.json has no `annotations`"),
        ("fg-ovd", OVD, lambda value: value["annotations"][1].update(image_id=3), "is 3, which is no id of `images`"),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][0].update(neg_category_ids=[8, 99]),
            r"annotations\[0\], neg_category_ids\[1\] is 99, which is no id of `categories`",
        ),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][0].update(neg_category_ids=[]),
            r"annotations\[0\] has no wrong",
        ),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][0].update(category_id=True),
            "is not a whole number but True",
        ),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][2].update(bbox=[96, 0, 5, 5]),
            r"annotations\[2\], bbox is outside the picture, which has 96 x 96 pixels: \[96.0, 0.0, 5.0, 5.0\]",
        ),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][0].update(bbox=[1, 2, 3]),
            r"is not \[x, y, width, height\]",
        ),
        ("fg-ovd", OVD, lambda value: value["annotations"][0].update(bbox=[1, 2, 0, 4]), r"is not \[x, y, width, heig"),
        ("fg-ovd", OVD, lambda value: value["annotations"][0].update(bbox="x"), "bbox is not a list but 'x'"),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][0].update(bbox=[float("nan"), 0, 5, 5]),
            r"bbox\[0\] is not a number but nan",
        ),
        (
            "fg-ovd",
            OVD,
            lambda value: value["annotations"][0].update(bbox=[10**400, 0, 5, 5]),
            r"bbox\[0\] is not a numb",
        ),
        ("fg-ovd", OVD, lambda value: value["categories"][0].update(name=""), r"annotations\[0\] has a blank text"),
        (
            "sdci",
            SDCI,
            lambda value: value["mask_data"]["0"].update(bounds=[[0, 0], [500, 500]]),
            r"101-data.json, mask_data, 0, bounds is not an object but \[\[0, 0\]",
        ),
        ("sdci", SDCI, lambda value: value.pop("mask_data"), "101-data.json has no `mask_data`"),
        ("sdci", SDCI, lambda value: value["summaries"].update(base=[""]), "101-data.json, base has a blank text"),
        ("sdci", SDCI, lambda value: value["summaries"].update(base=[3, "x"]), r"summaries, base\[0\] is not a text"),
        (
            "sdci",
            SDCI,
            lambda value: value["clip_scores"]["base"].update(swaps_0="high"),
            "clip_scores, base, swaps_0 is not a number but 'high'",
        ),
    ],
)
def test_a_file_that_is_not_as_published_is_an_error_with_its_location(tmp_path, name, file, change, message):
    WRITERS[name](tmp_path)
    value = json.loads((tmp_path / file).read_text())
    change(value)
    (tmp_path / file).write_text(json.dumps(value))
    with pytest.raises(TaskDataError, match=message) as caught:
        read(name, tmp_path, allow_partial=True)
    assert str(caught.value).count(TASKS[name].where) == 1


def test_the_files_of_the_other_sugarcrepe_are_an_error(tmp_path):
    published_files.sugarcrepe(tmp_path / "one")
    published_files.sugarcrepe_pp(tmp_path / "two")
    with pytest.raises(TaskDataError, match=r"replace_att\.json is not a list but \{'0'"):
        read("sugarcrepe-pp", tmp_path / "one")
    for category in ("add_att", "add_obj"):
        published_files.write_json(tmp_path / f"two/data/{category}.json", [])
    with pytest.raises(TaskDataError, match=r"add_att.json is not an object but \[\]"):
        read("sugarcrepe", tmp_path / "two")


def test_files_may_be_in_the_folder_itself(tmp_path):
    WRITERS["fg-ovd"](tmp_path / "a")
    expected = read("fg-ovd", tmp_path / "a")
    for path in (tmp_path / "a/benchmarks").iterdir():
        path.rename(tmp_path / "a" / path.name)
    assert read("fg-ovd", tmp_path / "a").choices == expected.choices


def test_a_picture_of_another_size_or_a_box_without_a_pixel_of_it_is_an_error(tmp_path):
    WRITERS["fg-ovd"](tmp_path)
    read_set = read("fg-ovd", tmp_path)
    picture = tmp_path / "val2017/000000000000.jpg"
    Image.open(picture).resize((64, 64)).save(picture)
    with pytest.raises(TaskDataError, match=r"has 64 x 64 pixels, but the box of .*annotations\[0\] is for 96 x 96"):
        list(read_set.images())
    with pytest.raises(
        TaskDataError, match=r"^a.json, 7: the box with the corners \(64, 0\) and \(80, 9\) has no pixel"
    ):
        read_region(str(picture), Box(64, 0, 80, 9), "a.json, 7")
    assert read_region(str(picture), Box(-9, -9, 3, 900), "a.json, 7").size == (3, 64)


def test_a_damaged_picture_is_none_in_each_of_its_regions(tmp_path):
    WRITERS["fg-ovd"](tmp_path)
    (tmp_path / "val2017/000000000000.jpg").write_bytes(b"no image")
    assert [image is None for image in read("fg-ovd", tmp_path).images()] == [True, True, False]


def test_queries_are_the_same_wherever_the_files_are_and_others_with_another_box_or_caption(tmp_path):
    for name in ("a", "b", "c", "d"):
        WRITERS["fg-ovd"](tmp_path / name)
    for name, change in (
        ("c", lambda value: value["annotations"][0].update(bbox=[0, 9, 62, 41])),
        ("d", lambda value: value["categories"][1].update(name="Another cup.")),
    ):
        value = json.loads((tmp_path / name / OVD).read_text())
        change(value)
        (tmp_path / name / OVD).write_text(json.dumps(value))
    queries = [read("fg-ovd", tmp_path / name).queries for name in "abcd"]
    assert queries[0] == queries[1] and len(set(queries)) == 3


def test_queries_that_no_model_can_answer_are_counted(tmp_path):
    """Two queries of SugarCrepe++'s swap_obj have a wrong caption that equals a right one."""
    published_files.sugarcrepe_pp(tmp_path)
    path = tmp_path / "data/swap_obj.json"
    value = json.loads(path.read_text())
    value[0]["negative_caption"] = value[0]["caption2"]
    path.write_text(json.dumps(value))
    assert read("sugarcrepe-pp", tmp_path).statistics()["unanswerable"] == 1
