"""A shard that is downloaded again with a few other images is captioned for these images only."""

import json
from pathlib import Path

import pytest

from lotlip_data.captioners.model_files import combined_digest
from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.schema import IMPORTED_KIND
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.earlier_captions import remove_captions_of_others
from tests.pipeline.recaptioning.grey_engine import CONFIG, GreyEngine, caption, rows, write_shard


def changed(value: int) -> dict[str, str]:
    """The bytes of image 3 are others under the same uid."""
    return {"sha256": "changed"} if value == 3 else {}


@pytest.mark.parametrize("model", [{}, {"config.json": "a digest"}])
def test_only_images_that_have_changed_are_captioned_again(tmp_path: Path, model: dict[str, str]) -> None:
    """The captions are those of a run that had these images at once. Image 2 was rejected, and 4 is gone."""
    digest = combined_digest(model)
    run, undisturbed = Run.at(str(tmp_path / "run")), Run.at(str(tmp_path / "undisturbed"))
    storage.create(run.captioner_settings("grey"), json.dumps({"id": CONFIG.id}).encode())
    if model:
        storage.create(run.model_files("grey"), json.dumps(model).encode())
    write_shard(run, 0, [1, 2, 3, 4])
    caption(run, GreyEngine(poison=(2,)), 0, model_digest=digest)
    storage.remove(run.image_stats(0))
    now = {("u1", "s1"): "000000001", ("u2", "s2"): "000000002", ("u3", "changed"): "000000003", ("u5", "s5"): "5"}
    assert remove_captions_of_others(run, 0, now, "0-b.tar") == ["grey"]
    assert ledger.captioned_shards(run, "grey") == []
    for each in (run, undisturbed):
        write_shard(each, 0, [1, 2, 3, 5], meta=changed, attempt="b")
    progress = ledger.captioned(run, "grey")
    assert [(record.rows, record.failed, record.tokens) for record in progress] == [(2, 1, 5)]
    engine = GreyEngine(poison=(2,))
    caption(run, engine, 0, model_digest=digest)
    assert sorted(engine.requests) == [3, 5]
    caption(undisturbed, GreyEngine(poison=(2,)), 0)
    assert rows(run, 0) == rows(undisturbed, 0)


def test_images_that_are_the_same_keep_their_captions_as_they_are(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path))
    write_shard(run, 0, [1, 2])
    caption(run, GreyEngine(), 0)
    before = rows(run, 0)
    assert remove_captions_of_others(run, 0, {("u1", "s1"): "a", ("u2", "s2"): "b"}, "0-b.tar") == []
    assert rows(run, 0) == before


@pytest.mark.parametrize("settings", [{"id": CONFIG.id, "kind": IMPORTED_KIND}, None])
def test_captions_that_are_imported_or_of_unknown_settings_are_all_made_again(
    tmp_path: Path, settings: dict[str, str] | None
) -> None:
    run = Run.at(str(tmp_path))
    write_shard(run, 0, [1, 2])
    caption(run, GreyEngine(), 0)
    if settings:
        storage.create(run.captioner_settings("grey"), json.dumps(settings).encode())
    assert remove_captions_of_others(run, 0, {("u1", "s1"): "a"}, "0-b.tar") == ["grey"]
    assert ledger.captioned_shards(run, "grey") == [] and not storage.list_names(run.caption_parts("grey", 0))
