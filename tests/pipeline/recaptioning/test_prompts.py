"""Each image's prompt has the columns of its own sample, and the caption's row says which ones by their hash."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from lotlip_data.captioners.base import Caption, EngineDead, TextRequest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.prompts import PromptFiller, PromptsNotSupported
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker
from tests.pipeline.recaptioning import grey_engine
from tests.pipeline.recaptioning.grey_engine import CONFIG, GreyEngine, caption, rows, write_shard

WITH_RAW = CONFIG.replace(prompt="Describe {raw} of {width} pixels.", max_field_characters=40)


class EchoEngine(GreyEngine):
    """An engine whose caption is the prompt that it has read."""

    special_texts = frozenset(["<end>"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts: list[str] = []

    def prepare(self, image: Image.Image) -> Any:
        raise AssertionError("the prompt of an image must be filled in")

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[Any]:
        self.prompts += [request.prompt for request in requests]
        return [(super(EchoEngine, self).prepare(image), request.prompt) for request in requests]

    async def caption(self, prepared: Any) -> Caption:
        value, prompt = prepared
        caption = await super().caption(value)
        return Caption(f"{prompt} {caption.text}", caption.finish_reason, caption.tokens)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.at(str(tmp_path / "a run"))


@pytest.fixture
def with_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grey_engine, "CONFIG", WITH_RAW)


def meta(value: int) -> dict[str, Any]:
    return {"texts": ["", f"text <end> {value}"], "sources": ["first", "second"], "width": 8}


@pytest.mark.usefixtures("with_raw")
def test_every_image_is_captioned_with_its_own_columns(run: Run) -> None:
    write_shard(run, 0, list(range(20)), meta=meta)
    caption(run, EchoEngine(), 0)
    for value, row in enumerate(rows(run, 0)):
        assert row["text"] == f"Describe text end> {value} of 8 pixels. It is {value}."
        content = json.dumps({"raw": f"text <end> {value}", "width": 8}, separators=(",", ":"))
        assert row["fields_sha256"] == hashlib.sha256(content.encode()).hexdigest()
        assert row["flags"] == ["prompt_echo"]


@pytest.mark.usefixtures("with_raw")
def test_rows_of_rejected_images_have_the_hash_too(run: Run) -> None:
    write_shard(run, 0, [1, 2, 3], broken=(2,), meta=meta)
    caption(run, EchoEngine(poison=(3,)), 0)
    assert [row["error"] is None for row in rows(run, 0)] == [True, False, False]
    assert all(row["fields_sha256"] for row in rows(run, 0))


@pytest.mark.usefixtures("with_raw")
@pytest.mark.parametrize("without", [None, "Describe the image of {source}."])
def test_an_image_without_a_raw_text_is_captioned_and_flagged(
    run: Run, monkeypatch: pytest.MonkeyPatch, without: str | None
) -> None:
    monkeypatch.setattr(grey_engine, "CONFIG", WITH_RAW.replace(prompt_without_raw=without))
    write_shard(run, 0, [1], meta=lambda value: {"texts": [" \u200b", None], "sources": ["a", "b"], "width": 8})
    engine = EchoEngine()
    caption(run, engine, 0)
    assert engine.prompts[-1] == ("Describe the image of a." if without else "Describe  of 8 pixels.")
    assert "without_raw_text" in rows(run, 0)[0]["flags"]


def test_a_prompt_without_fields_records_no_hash(run: Run) -> None:
    write_shard(run, 0, [1, 2], meta=meta)
    caption(run, GreyEngine(), 0)
    assert [row["fields_sha256"] for row in rows(run, 0)] == [None, None]


@pytest.mark.usefixtures("with_raw")
def test_captions_of_parts_are_used_again_only_if_the_texts_are_still_the_same(run: Run) -> None:
    """The shard is downloaded again between two attempts, the second time with other texts."""
    write_shard(run, 0, list(range(60)), meta=meta)
    with pytest.raises(EngineDead):
        caption(run, EchoEngine(max_requests=40), 0, part_size=10)
    kept = EchoEngine(max_requests=5)
    with pytest.raises(EngineDead):
        caption(run, kept, 0, part_size=10)
    write_shard(run, 0, list(range(60)), attempt="b", meta=lambda value: meta(value) | {"texts": ["", f"new {value}"]})
    (result,) = caption(run, EchoEngine(), 0, part_size=10)
    assert result.captioned == 60
    assert all(row["text"].startswith("Describe new ") for row in rows(run, 0))


def test_the_warm_up_reads_a_prompt_of_the_largest_length(run: Run) -> None:
    engine = EchoEngine()
    request = PromptFiller((WITH_RAW,), engine).sample_request(WITH_RAW)
    assert 0 <= len("Describe  of 10000 pixels.") + 40 - len(request.prompt) < len("word ")


@pytest.mark.parametrize("prompt", ["Describe {raw}.", "Repeat {{raw}}."])
def test_an_engine_that_takes_one_prompt_for_all_images_is_named_at_the_start(run: Run, prompt: str) -> None:
    config = CONFIG.replace(prompt=prompt)
    with pytest.raises(
        PromptsNotSupported, match=r"captioner 'grey': its prompt has fields .* Remove them .*prepare_texts"
    ):
        CaptionWorker(run, config, GreyEngine())
    CaptionWorker(run, CONFIG.replace(prompt='As {"text": "…"} or {x}.'), GreyEngine())
