"""Writes evaluation sets of a few images, in the files and layouts of the published sets."""

import io
import json
import pathlib
import tarfile

import numpy as np

from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene


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
