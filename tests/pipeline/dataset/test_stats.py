"""Statistics equal the paper's on the same texts, and plain counts on a known dataset."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.formats.dataset_index import DatasetError
from lotlip_data.manifests.text_stats import bert_tokens, tally
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.pipeline.dataset.stats import dataset_stats, table
from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import GOLDENS

IIW = GOLDENS / "iiw.jsonl.gz"


def test_the_papers_figures_on_its_612_long_texts() -> None:
    """Table 1, IIW: 10.16 sub-captions and 239.73 tokens per text, by the authors' rule."""
    with gzip.open(IIW, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["IIW"] for line in lines]
    stats = tally(texts, "authors", bert_tokens()).to_dict()
    assert stats["texts"] == 612
    assert f"{stats['sub_captions_per_text']:.2f}" == "10.16"
    assert f"{stats['tokens_per_text']:.2f}" == "239.73"


def test_tokens_are_wordpieces_without_special_tokens() -> None:
    assert bert_tokens()(["Unaffable, naïve.", "", "[CLS]"]) == [6, 0, 1]  # una ##ffa ##ble , naive .


def test_a_blank_text_does_not_count() -> None:
    assert tally(["", " \n", "One. Two."], "punkt", bert_tokens()).to_dict() == {
        "texts": 1,
        "sub_captions_per_text": 2.0,
        "tokens_per_text": 4.0,
    }


def test_a_dataset_is_counted_by_captioner_and_in_total(tmp_path: Path) -> None:
    """Two shards and an empty one. One text is missing and two have flags."""
    fake = fake_run.make(tmp_path, shards=2)
    fake_run.commit_images(fake.run, 2, [], [])
    rows = fake_run.captions_of(fake.run, "llava", 0)
    lost = rows[0]["uid"]
    rows[0] |= {"text": None, "flags": []}
    rows[1] |= {"flags": ["cut_off", "repetition"]}
    rows[2] |= {"flags": ["cut_off"]}
    fake_run.write_captions(fake.run, "llava", 0, rows)
    recipe = metadata.Recipe({name: f"{name}@1" for name in WRITERS}, Filters())
    records = [fake_run.build(fake.run, recipe, number) for number in range(3)]
    publish(fake.run, fake.manifest, recipe, records)

    stats = dataset_stats(fake.run)
    count, long_texts = bert_tokens(), []
    for name in WRITERS:
        texts = [long_text(scene, name) for uid, scene in fake.scenes.items() if (name, uid) != ("llava", lost)]
        long_texts += texts
        captioner_stats = stats["captioners"][name]
        assert captioner_stats["texts"] == len(texts)
        assert captioner_stats["sub_captions_per_text"] == pytest.approx(
            sum(len(subcaptions.split(text)) for text in texts) / len(texts), rel=1e-12
        )
        assert captioner_stats["tokens_per_text"] == pytest.approx(sum(count(texts)) / len(texts), rel=1e-12)
        assert captioner_stats["flags"] == ({"cut_off": 2, "repetition": 1} if name == "llava" else {})
    raws = [raw_text(scene) for scene in fake.scenes.values()]
    assert (stats["raw"]["texts"], stats["raw"]["tokens_per_text"]) == (16, sum(count(raws)) / 16)
    assert sum(stats["lengths"].values()) == 47
    by_range = Counter(f"{16 * (n // 16)}-{16 * (n // 16) + 15}" for n in count(raws))
    assert stats["raw"]["lengths"] == by_range
    assert stats["sources"]["web"] == {name: stats[name] for name in stats["sources"]["web"]}
    assert (stats["images"], stats["texts"]) == (16, 47)
    assert stats["tokens_per_text"] == pytest.approx(sum(count(long_texts)) / 47, rel=1e-12)
    assert stats["sub_captions_per_text"] == pytest.approx(
        sum(len(subcaptions.split(text)) for text in long_texts) / 47, rel=1e-12
    )
    assert "flags of llava: cut_off 2, repetition 1" in table(stats)
    renamed = {name * 3: row for name, row in stats["captioners"].items()}
    (heading,) = (line for line in table(stats | {"captioners": renamed}) if line.startswith("BERT tokens of"))
    assert heading.split()[-3:] == list(renamed)

    Path(fake.run.shards, "train-00001.parquet").write_bytes(b"torn")
    with pytest.raises(DatasetError, match=r"train-00001\.parquet: cannot be read .* `lotlip-data verify"):
        dataset_stats(fake.run)


def test_the_first_raw_text_that_is_not_blank_counts_in_the_total(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=0, writers=["llava"])
    row = fake_run.listed_row(
        "000000000", "http://images.test/3000000.jpg", ["", "two words", "three words now"], ["a", "b", "c"]
    )
    row |= {"status": "success", "sha256": "s", "width": 8, "height": 8}
    fake_run.commit_images(fake.run, 0, [row], [(row, b"image")])
    fake_run.write_captions(fake.run, "llava", 0, fake_run.captions_of(fake.run, "llava", 0))
    recipe = metadata.Recipe({"llava": "llava@1"}, Filters())
    publish(fake.run, fake.manifest, recipe, [fake_run.build(fake.run, recipe, 0)])
    stats = dataset_stats(fake.run)
    assert (stats["raw"]["texts"], stats["raw"]["tokens_per_text"]) == (1, 2)
    assert {name: row["raw"]["texts"] for name, row in stats["sources"].items()} == {"a": 0, "b": 1, "c": 1}


def test_the_error_without_a_dataset_names_the_command(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path)
    with pytest.raises(DatasetError, match="the run has no dataset yet"):
        dataset_stats(fake.run)
