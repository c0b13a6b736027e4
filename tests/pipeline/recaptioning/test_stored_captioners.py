"""The captioners of a run can be listed, and removed without losing captions by mistake."""

from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from lotlip_data.pipeline.recaptioning.stored_captioners import format_text, remove, remove_all, stored_captioners
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import FakeRun


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    fake = fake_run.make(tmp_path, shards=2, writers=["llava", "sharegpt4v"])
    storage.remove(fake.run.caption_shard("sharegpt4v", 1))
    fake_run.claim_captioner(fake.run, "started")
    return fake


def test_the_list_names_every_captioner_with_its_shards_and_whether_the_manifest_has_it(fake: FakeRun) -> None:
    stored = stored_captioners(fake.run, fake.manifest.replace(captioners=("llava",)))
    assert [(entry.name, entry.shards, entry.in_manifest, entry.in_dataset) for entry in stored] == [
        ("llava", 2, True, False),
        ("sharegpt4v", 1, False, False),
        ("started", 0, False, False),
    ]
    header, llava, _, started = format_text(fake.run, stored)
    assert header.split() == ["captioner", "shards", "images", "manifest", "dataset", "kind", "model"]
    assert llava.split()[:4] == ["llava", "2", "of", "2"] and started.split()[:4] == ["started", "0", "of", "2"]


def test_captions_are_removed_only_on_request_and_nothing_of_others_is(fake: FakeRun) -> None:
    with pytest.raises(RecaptionError, match=r"captions of .* images in 1 committed shard\..*--captions"):
        remove(fake.run, "sharegpt4v", captions=False)
    assert ledger.captioned_shards(fake.run, "sharegpt4v") == [0]
    others = storage.list_below(fake.run.captioner("llava"))
    remove(fake.run, "started", captions=False)
    remove(fake.run, "sharegpt4v", captions=True)
    assert ledger.captioners(fake.run) == ["llava"] and storage.list_below(fake.run.captioner("llava")) == others


@pytest.mark.parametrize("name", ["lava", "", "..", "llava/../llava"])
def test_only_a_captioner_of_the_run_can_be_removed(fake: FakeRun, name: str) -> None:
    before = storage.list_below(fake.run.url)
    with pytest.raises(RecaptionError, match="it has llava, sharegpt4v, started"):
        remove(fake.run, name, captions=True)
    assert storage.list_below(fake.run.url) == before


def entry(**prompts: str) -> dict:
    return {"name": "qwen", "kind": "llava", "model": "m", "prompts": prompts}


def test_the_texts_of_one_captioner_are_listed_together(fake: FakeRun) -> None:
    for name in ("qwen_b", "qwen_a", "qwen_other"):
        fake_run.claim_captioner(fake.run, name)
    stored = stored_captioners(fake.run, fake.manifest.replace(captioners=("llava", entry(a="A.", b="B."))))
    assert [(each.name, each.captioner, each.in_manifest) for each in stored if each.name.startswith("qwen")] == [
        ("qwen_a", "qwen", True),
        ("qwen_b", "qwen", True),
        ("qwen_other", None, False),
    ]


def test_a_captioner_is_removed_with_all_its_texts_or_a_text_alone(fake: FakeRun) -> None:
    manifest = fake.manifest.replace(captioners=(entry(a="A.", b="B.", c="C."),))
    for name in ("qwen_a", "qwen_b", "qwen_c"):
        fake_run.claim_captioner(fake.run, name)
    fake_run.write_captions(fake.run, "qwen_b", 0, fake_run.captions_of(fake.run, "llava", 0))
    remove_all(fake.run, manifest, "qwen_c", captions=False)
    with pytest.raises(RecaptionError, match="qwen_b: has captions of"):
        remove_all(fake.run, manifest, "qwen", captions=False)
    assert {"qwen_a", "qwen_b"}.issubset(ledger.captioners(fake.run))
    lines = remove_all(fake.run, manifest, "qwen", captions=True)
    assert [line.split()[1].rstrip(",") for line in lines] == ["qwen_a", "qwen_b"]
    assert ledger.captioners(fake.run) == ["llava", "sharegpt4v", "started"]
    with pytest.raises(RecaptionError, match="has no captioner 'qwen'"):
        remove_all(fake.run, manifest, "qwen", captions=True)
