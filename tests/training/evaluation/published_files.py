"""Writes evaluation sets of a few images, in the files and layouts of the published sets."""

import io
import json
import pathlib
import tarfile

import numpy as np

from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.evaluation.tasks.sugarcrepe import SUGARCREPE_PP_QUERIES, SUGARCREPE_QUERIES


def write_image(path: pathlib.Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    render(sample_scene(SPLITS["evaluation"][index])).save(path, "JPEG")


def text(index: int) -> str:
    return long_text(sample_scene(SPLITS["evaluation"][index]), WRITERS[0])


def write_json(path: pathlib.Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_json_lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def dci(folder: pathlib.Path, count: int = 3) -> None:
    root = folder / "densely_captioned_images"
    names = [f"{100 + i}-data.json" for i in range(count)]
    write_json(root / "splits.json", {"train": names[1:], "valid": [], "test": names[:1]})
    for i, name in enumerate(names):
        short, extra = f"A short caption of image {i}.", f"More of it. {text(i)}"
        entry = {
            "short_caption": short,
            "extra_caption": extra,
            "image": f"sa_{i}.jpg",
            "mask_data": {},
            "mask_keys": [],
        }
        write_json(root / "annotations" / name, entry)
        write_image(root / "photos" / f"sa_{i}.jpg", i)


def iiw(folder: pathlib.Path) -> None:
    """IIW-400 has `image/key`, an image of DOCCI_Test is published in another split, DCI_Test's name has an ending."""
    write_json_lines(folder / "IIW-400/data.jsonl", [{"image/key": "aar_test_04600", "IIW": text(0), "IIW-P5B": "x"}])
    rows = [
        {"image": "test_00731", "IIW": text(1), "DOCCI": "x"},
        {"image": "test_00732", "IIW": text(2), "DOCCI": "x"},
    ]
    write_json_lines(folder / "DOCCI_Test/data.jsonl", rows)
    row = {"image": "sa_1545038.jpg", "ex_id": "113029-data.json", "IIW": text(3)}
    write_json_lines(folder / "DCI_Test/data.jsonl", [row])
    write_image(folder / "images_aar/aar_test_04600.jpg", 0)
    write_image(folder / "images/test_00731.jpg", 1)
    write_image(folder / "images/train_00732.jpg", 2)
    write_image(folder / "densely_captioned_images/photos/sa_1545038.jpg", 3)


def sharegpt4v(folder: pathlib.Path, count: int = 4) -> None:
    """Records of other sources are between those of SA-1B. Images are where each way of unpacking puts them."""
    records = []
    for i in range(count):
        question = {"from": "human", "value": "<image>\nDescribe the image."}
        for image in (f"sam/images/sa_{i}.jpg", f"coco/train2017/{i:012}.jpg"):
            answer = {"from": "gpt", "value": text(i) if image.startswith("sam") else "Another source’s text."}
            records.append({"id": f"sa_{i}", "image": image, "conversations": [question, answer]})
    write_json(folder / "share-captioner_coco_lcs_sam_1246k_1107.json", records)
    places = ("sam/images", "sa_000000/images", "sa_000020", "images")
    for i in range(count):
        write_image(folder / places[i % 4] / f"sa_{i}.jpg", i)


def urban1k(folder: pathlib.Path, count: int = 3) -> None:
    for i in range(count):
        path = folder / "Urban1k/caption" / f"{221 + i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text(i)}\nA second line.\n")
        write_image(folder / "Urban1k/image" / f"{221 + i}.jpg", i)


def docci(folder: pathlib.Path) -> None:
    splits = {"train_00000": "train", "test_00000": "test", "test_00001": "test", "qual_dev_00000": "qual_dev"}
    rows = []
    for i, (name, split) in enumerate(splits.items()):
        rows.append({"split": split, "example_id": name, "image_file": f"{name}.jpg", "description": text(i)})
        write_image(folder / "images" / f"{name}.jpg", i)
    write_json_lines(folder / "docci_descriptions.jsonlines", rows)


def karpathy(folder: pathlib.Path, file: str, images: str, count: int = 3) -> None:
    """Six captions per image, as some of MSCOCO's have. The first image is of the training split."""
    entries = []
    for i in range(count + 1):
        name = f"{i:012}.jpg"
        captions = [f"Caption {k} of image {i}." for k in range(6)]
        sentences = [
            {"raw": raw, "tokens": raw.lower().split(), "imgid": i, "sentid": 6 * i + k}
            for k, raw in enumerate(captions)
        ]
        entry = {"filename": name, "imgid": i, "split": "test" if i else "train", "sentences": sentences}
        entries.append(entry | {"sentids": [sentence["sentid"] for sentence in sentences]})
        write_image(folder / images / name, i)
    write_json(folder / file, {"dataset": "x", "images": entries})


def fg_retrieval(folder: pathlib.Path, name: str, images: str, count: int = 3) -> None:
    """Five texts for each of three test images, and two similar images, which stand between the names of the others."""
    stems = [f"{1_000 + i}" for i in range(count)]
    annotations = {stem: [f"text {k} of image {i}" for k in range(5)] for i, stem in enumerate(stems)}
    write_json(folder / f"Annotations/{name}_FG_ann.json", annotations)
    similar = [f"{20 + i:012}.jpg" for i in range(2)]
    pool = [f"{stems[1]}.jpg", similar[0], f"{stems[0]}.jpg", *(f"{stem}.jpg" for stem in stems[2:]), similar[1]]
    (folder / "Images").mkdir(parents=True)
    np.save(folder / f"Images/{name}_FG_img_filenames.npy", np.array(pool))
    for i, stem in enumerate(stems):
        write_image(folder / images / f"{stem}.jpg", i)
    for i, image in enumerate(similar):
        write_image(folder / "unlabeled2017" / image, count + i)


def sugarcrepe(folder: pathlib.Path) -> None:
    """Two queries per category, of which the first images are the same; a number is missing, as in swap_obj."""
    for number, category in enumerate(SUGARCREPE_QUERIES):
        records = {
            key: {
                "filename": f"{i:012}.jpg",
                "caption": f"{category} caption {i}.",
                "negative_caption": f"{category} wrong caption {i}.",
            }
            for key, i in (("0", 0), ("2", number + 1))
        }
        write_json(folder / f"data/{category}.json", records)
        write_image(folder / "val2017" / f"{number + 1:012}.jpg", number + 1)
    write_image(folder / "val2017" / f"{0:012}.jpg", 0)


def sugarcrepe_pp(folder: pathlib.Path) -> None:
    for number, category in enumerate(SUGARCREPE_PP_QUERIES):
        records = [
            {
                "id": i,
                "filename": f"{i:012}.jpg",
                "caption": f"{category} caption {i}.",
                "caption2": f"{category} in other words, caption {i}.",
                "negative_caption": f"{category} wrong caption {i}.",
            }
            for i in (0, number + 1)
        ]
        write_json(folder / f"data/{category}.json", records)
        write_image(folder / "val2017" / f"{number + 1:012}.jpg", number + 1)
    write_image(folder / "val2017" / f"{0:012}.jpg", 0)


FG_OVD_BOXES = ([0.0, 10.24, 62.27, 41.74], [20.5, 0.0, 30.0, 30.5])
"""Boxes of the first picture: two regions of it."""


def fg_ovd(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Two regions of one picture and one of another, with captions whose ids are not in order."""
    images = [
        {"id": 56288 + i, "file_name": f"{split}/{i:012}.jpg", "width": 96, "height": 96, "checked": True}
        for i, split in enumerate(("val2017", "train2017"))
    ]
    for category, file in files.items():
        names = {7: "A red cup.", 8: "A blue cup.", 5: "A green cup.", 20: "A white plate.", 21: "A black plate."}
        categories = [
            {"id": key, "name": f"{name} ({category})", "synset": "", "def": ""} for key, name in names.items()
        ]
        annotations = [
            {"id": 3, "bbox": FG_OVD_BOXES[0], "image_id": 56288, "category_id": 7, "neg_category_ids": [8, 5]},
            {"id": 4, "bbox": FG_OVD_BOXES[1], "image_id": 56288, "category_id": 20, "neg_category_ids": [21]},
            {"id": 5, "bbox": [4.0, 4.0, 92.5, 90.0], "image_id": 56289, "category_id": 8, "neg_category_ids": [7]},
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / "benchmarks" / file, content)
    for i, image in enumerate(images):
        write_image(folder / str(image["file_name"]), i)


def sdci_annotation(i: int, masks: int, captions: int = 5) -> dict:
    """An annotation with large masks, a mask that is too small, and captions of the image and of the large masks."""
    large = [{"topLeft": {"x": 10 * m, "y": 5}, "bottomRight": {"x": 10 * m + 240, "y": 300}} for m in range(masks)]
    bounds = [*large, {"topLeft": {"x": 0, "y": 0}, "bottomRight": {"x": 223, "y": 400}}]
    keys = ["base", *(f"m-{m}-sc" for m in range(masks))]
    kinds = {"basic": 1, "layout": 1, "swaps": 2}
    return {
        "image": f"sa_{i}.jpg",
        "short_caption": f"A short caption of image {i}.",
        "extra_caption": "More of it.",
        "mask_data": {
            str(m): {
                "idx": m,
                "label": f"thing {m}",
                "caption": "a thing",
                "mask_quality": 0,
                "requirements": [],
                "bounds": corners,
            }
            for m, corners in enumerate(bounds)
        },
        "mask_keys": [str(m) for m in range(len(bounds))],
        "summaries": {key: [f"image {i} {key} caption {k}" for k in range(captions)] for key in keys},
        "negatives": {
            key: {kind: [f"image {i} {key} wrong {kind} {k}" for k in range(number)] for kind, number in kinds.items()}
            for key in keys
        },
        "clip_scores": {
            key: {"sum": 30.0} | {f"{kind}_{k}": 20.0 + k for kind, number in kinds.items() for k in range(number)}
            for key in keys
        },
    }


def sdci(folder: pathlib.Path, count: int = 3, masks: int = 3) -> None:
    """Images of 400 x 400 pixels. Only those of the test split are read: the first annotation is of another split."""
    root = folder / "densely_captioned_images"
    names = [f"{100 + i}-data.json" for i in range(count + 1)]
    write_json(root / "splits.json", {"train": names[:1], "valid": [], "test": names[1:]})
    for i, name in enumerate(names):
        write_json(root / "annotations" / name, sdci_annotation(i, masks))
        (root / "photos").mkdir(exist_ok=True)
        render(sample_scene(SPLITS["evaluation"][i])).resize((400, 400)).save(root / "photos" / f"sa_{i}.jpg", "JPEG")


def wordnet_ids(count: int = 1000) -> list[str]:
    return [f"n{10_000_000 + 7 * i}" for i in range(count)]


def imagenet_folders(folder: pathlib.Path) -> None:
    """Sorted images of three classes; the folders of the other classes are empty."""
    for label, name in enumerate(wordnet_ids()):
        (folder / "val" / name).mkdir(parents=True)
        if label in (0, 500, 999):
            write_image(folder / "val" / name / f"ILSVRC2012_val_{label:08}.JPEG", label)


def imagenet_devkit(folder: pathlib.Path) -> None:
    """The development kit as an archive. Its class numbers are in another order than the WordNet ids."""
    from scipy.io import savemat

    ids = wordnet_ids()
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = [(1000 - label, name, "a name, another name", 0, []) for label, name in enumerate(ids)]
    rows += [(1001, "n00000001", "living thing", 2, [1, 2])]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind)})
    truth = "".join(f"{1000 - label}\n" for label in (500, 0, 999))
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
        files = {"readme.txt": b"", "data/meta.mat": meta.getvalue()}
        for name, content in (files | {"data/ILSVRC2012_validation_ground_truth.txt": truth.encode()}).items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(content)
            kit.addfile(member, io.BytesIO(content))
    for number, label in enumerate((500, 0, 999), 1):
        write_image(folder / "val" / f"ILSVRC2012_val_{number:08}.JPEG", label)


def imagenet_kaggle(folder: pathlib.Path) -> None:
    ids = wordnet_ids()
    (folder / "LOC_synset_mapping.txt").write_text(
        "".join(f"{wordnet_id} a name, another name\n" for wordnet_id in ids)
    )
    rows = [(f"ILSVRC2012_val_{label:08}", f"{ids[label]} 85 1 499 272 ") for label in (500, 0, 999)]
    lines = ["ImageId,PredictionString", *(f"{image},{boxes}" for image, boxes in rows)]
    (folder / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    for (image, _), label in zip(rows, (500, 0, 999), strict=True):
        write_image(folder / "ILSVRC/Data/CLS-LOC/val" / f"{image}.JPEG", label)
