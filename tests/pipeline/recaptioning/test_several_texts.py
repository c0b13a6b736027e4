"""A captioner with several texts for each image, from the manifest to the columns of the dataset."""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.manifests import manifest, storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning import actor_pool, stage
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import ROOT

FAULTS = ROOT / "tests" / "faults"
SHARDS, IMAGES = 3, 8
PROMPTS = {"long": "Describe.", "short": "Name.", "tags": {"prompt": "Tag.", "max_new_tokens": 48}}
LONG, SHORT, TAGS = NAMES = ["qwen_long", "qwen_short", "qwen_tags"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose manifest has a captioner of kind `texts`."""
    fake = fake_run.make(tmp_path / "run", SHARDS, IMAGES, writers=())
    set_prompts(fake.run, tmp_path, PROMPTS)
    return fake.run


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pools work in this process, one shard after another."""
    monkeypatch.syspath_prepend(str(FAULTS))
    get_kind.cache_clear()

    def run_pools(pools: Sequence[Any], on_done: Any, on_failed: Any, on_tick: Any) -> None:
        for pool in pools:
            engine = load_engine(pool.config, **pool.settings.engine_options.explicit)
            for shard in pool.queue:
                outcome = asyncio.run(_caption(pool, engine, shard))
                on_done(pool.config.name, outcome.done)

    async def _caption(pool: Any, engine: Any, shard: int) -> Any:
        return await CaptionWorker(pool.run, pool.config, engine).caption_shard(shard, pool.texts[shard])

    monkeypatch.setattr(actor_pool, "run_pools", run_pools)
    monkeypatch.setattr(stage, "cluster", contextlib.nullcontext)


def set_prompts(run: Run, faults: Path, prompts: dict[str, Any], **settings: Any) -> None:
    """Set the texts of the run's captioner `qwen`."""
    pool = {"engine_options": {"engine_args": {"faults": str(faults)}}}
    entry = {"name": "qwen", "kind": "texts", "model": "m", "prompts": prompts, "pool": pool, **settings}
    manifest.freeze(manifest.frozen(run).replace(captioners=(entry,)), run, update=True)


def asked(faults: Path) -> Counter[str]:
    """The number of captions that the engine has made of each text since the last call."""
    log = faults / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return Counter(line.split()[0] for line in lines)


def committed(run: Run, name: str) -> dict[str, bytes]:
    return {shard: storage.read_bytes(run.caption_shard(name, shard)) for shard in ledger.captioned_shards(run, name)}


def test_the_command_makes_the_texts_that_a_shard_lacks_and_no_other(
    run: Run, tmp_path: Path, without_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt is added, one is left out, a captioned shard is removed, and one text is selected."""
    set_prompts(run, tmp_path, {"long": "Describe.", "short": "Name."})
    with caplog.at_level(logging.INFO):
        outcome = stages.recaption(run)
    assert outcome.figures == {
        name: {"shards_skipped": 0, "shards_done": SHARDS, "captioned": SHARDS * IMAGES, "rejected": 0}
        for name in (LONG, SHORT)
    }
    assert asked(tmp_path) == {LONG: SHARDS * IMAGES, SHORT: SHARDS * IMAGES}
    assert "starting 1 engine: qwen (qwen_long, qwen_short)" in caplog.text
    assert "qwen: shard 00002: 8 images, 2 texts each; 3 of 3 shards done" in caplog.text
    before = {name: committed(run, name) for name in (LONG, SHORT)}

    set_prompts(run, tmp_path, PROMPTS)
    storage.remove(run.caption_shard(SHORT, 1))
    outcome = stages.recaption(run)
    assert asked(tmp_path) == {TAGS: SHARDS * IMAGES, SHORT: IMAGES}
    assert {name: figures["shards_done"] for name, figures in outcome.figures.items()} == {LONG: 0, SHORT: 1, TAGS: 3}
    assert before == {name: committed(run, name) for name in (LONG, SHORT)}

    set_prompts(run, tmp_path, {"tags": PROMPTS["tags"], "more": "Say more.", "title": "Give it a title."})
    stages.recaption(run, ["qwen_title"])
    assert asked(tmp_path) == {"qwen_title": SHARDS * IMAGES}
    assert before == {name: committed(run, name) for name in (LONG, SHORT)}
    stages.recaption(run, ["qwen"])
    assert asked(tmp_path) == {"qwen_more": SHARDS * IMAGES}
    assert not stages.recaption(run).did_something


def test_each_text_has_its_own_folder_id_and_prompt(run: Run, tmp_path: Path, without_ray: None) -> None:
    stages.recaption(run)
    settings = {name: ledger.captioner_settings(run, name) for name in NAMES}
    assert ledger.captioners(run) == NAMES
    assert [(settings[name]["prompt"], settings[name]["max_new_tokens"]) for name in NAMES] == [
        ("Describe.", 256),
        ("Name.", 256),
        ("Tag.", 48),
    ]
    assert [settings[name]["id"].partition("@")[0] for name in NAMES] == NAMES
    for name in NAMES:
        rows = [row for shard in range(SHARDS) for row in pq.read_table(run.caption_shard(name, shard)).to_pylist()]
        assert len({row["uid"] for row in rows}) == SHARDS * IMAGES
        assert all(row["text"].startswith(settings[name]["prompt"]) for row in rows)


def test_a_changed_prompt_is_refused_with_the_name_of_its_text(run: Run, tmp_path: Path, without_ray: None) -> None:
    stages.recaption(run)
    set_prompts(run, tmp_path, PROMPTS | {"short": "Another."})
    with pytest.raises(ValueError, match=r"captions/qwen_short holds captions of qwen_short@.*\(changed: prompt\)"):
        stages.recaption(run)


@pytest.mark.slow
def test_with_ray_three_texts_are_three_columns_of_the_dataset(run: Run, tmp_path: Path) -> None:
    """One text fails on plain images: nothing is committed, and the text is named. Then it is mended."""
    (tmp_path / "fail-qwen_short").touch()
    set_prompts(
        run, tmp_path, PROMPTS, pool={"engine_options": {"engine_args": {"faults": str(tmp_path)}}, "max_rejected": 0}
    )
    path = os.pathsep.join([str(FAULTS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("RAY_ADDRESS", None)

    def command(*arguments: str) -> tuple[int, dict[str, Any], str]:
        process = subprocess.run(
            [sys.executable, "-m", "lotlip_data.pipeline.cli", *arguments, run.url, "--json"],
            env=environment,
            capture_output=True,
            text=True,
        )
        return process.returncode, json.loads(process.stdout), process.stderr

    code, _, errors = command("recaption")
    assert code == 1
    assert "qwen: 3 shards not captioned: captioner 'qwen_short' cannot caption a plain image" in " ".join(
        errors.split()
    )
    assert all(ledger.captioned_shards(run, name) == [] for name in NAMES)
    (tmp_path / "fail-qwen_short").unlink()
    (tmp_path / "log").unlink()
    code, figures, _ = command("recaption")
    assert code == 0
    assert {name: figures[name]["captioned"] for name in NAMES} == dict.fromkeys(NAMES, SHARDS * IMAGES)
    counts = asked(tmp_path)
    assert {name: counts[name] for name in NAMES} == dict.fromkeys(NAMES, SHARDS * IMAGES + 3)  # warm-up
    assert command("shard")[0] == 0
    table = pq.read_table(Path(run.shards, "train-00000.parquet"))
    for name, prompt in zip(NAMES, ("Describe.", "Name.", "Tag."), strict=True):
        assert {f"{name}_sub", f"{name}_flags"}.issubset(table.column_names)
        assert all(text.startswith(prompt) for text in table[name].to_pylist())
