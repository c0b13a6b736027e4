"""Captions of different settings or models never mix, and a captioner that has committed nothing can be mended."""

import shutil
from pathlib import Path

import pytest

from lotlip_data.captioners.base import CaptionerConfig, EngineDead, EngineOptions
from lotlip_data.captioners.model_files import changed_files, combined_digest
from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.claims import (
    check_claims,
    check_model,
    claim_model,
    claim_revision,
    claim_settings,
    origin,
    with_claimed_revision,
)
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from tests.pipeline.recaptioning.grey_engine import CONFIG, GreyEngine, caption, rows, write_shard

NO_OPTIONS = EngineOptions()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "a run"))


@pytest.fixture
def mine(tmp_path: Path) -> CaptionerConfig:
    """A captioner whose model is a folder of one's own."""
    shutil.copytree(resolve("tiny-llava"), tmp_path / "mine")
    return CaptionerConfig(name="mine", kind="llava", model=str(tmp_path / "mine"))


def commit_a_shard(run: Run, captioner: str) -> None:
    storage.create(run.caption_shard(captioner, 0), b"")


def test_other_settings_are_accepted_until_a_shard_is_committed(run: Run) -> None:
    other = CONFIG.model_copy(update={"template": "{prompt} <image>"})
    claim_settings(run, CONFIG)
    claim_settings(run, other)
    assert ledger.captioner_settings(run, "grey")["id"] == other.id
    commit_a_shard(run, "grey")
    with pytest.raises(RecaptionError, match=r"changed: template.*Give the captioner another name"):
        claim_settings(run, CONFIG)


def test_captions_of_a_captioner_whose_name_was_claimed_by_other_settings_are_not_committed(run: Run) -> None:
    write_shard(run, 0, [1, 2])
    claim_settings(run, CONFIG)
    claim_settings(run, CONFIG.model_copy(update={"max_new_tokens": 9}))
    with pytest.raises(RecaptionError, match=r"now belongs to grey@.*Give grey@\w+ another name"):
        caption(run, GreyEngine(), 0)
    assert not storage.exists(run.caption_shard("grey", 0))


def test_settings_that_a_user_has_removed_do_not_stop_a_commit(run: Run) -> None:
    check_claims(run, CONFIG, "")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_model_folder_that_is_overwritten_after_a_commit_is_refused_with_the_changed_files(
    run: Run, mine: CaptionerConfig, name: str
) -> None:
    claim_model(run, mine, origin(mine, NO_OPTIONS))
    commit_a_shard(run, "mine")
    check_model(run, mine, origin(mine, NO_OPTIONS), forget=True)
    file = Path(mine.model, name)
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
    with pytest.raises(RecaptionError, match=rf"mine has changed .*\(changed: {name}\)"):
        check_model(run, mine, origin(mine, NO_OPTIONS), forget=True)
    with pytest.raises(RecaptionError, match="has changed"):
        claim_model(run, mine, origin(mine, NO_OPTIONS))


def test_files_that_cannot_change_a_text_may_change(run: Run, mine: CaptionerConfig) -> None:
    claim_model(run, mine, origin(mine, NO_OPTIONS))
    commit_a_shard(run, "mine")
    Path(mine.model, "README.md").write_text("A model card.")
    Path(mine.model, "runs").mkdir()
    Path(mine.model, "runs", "events.json").write_text("{}")
    check_model(run, mine, origin(mine, NO_OPTIONS), forget=True)


def test_a_model_folder_may_be_mended_until_a_shard_is_committed_but_not_by_an_actor(
    run: Run, mine: CaptionerConfig
) -> None:
    claim_model(run, mine, origin(mine, NO_OPTIONS))
    Path(mine.model, "processor_config.json").write_text("{}")
    with pytest.raises(RecaptionError, match="has changed"):
        check_model(run, mine, origin(mine, NO_OPTIONS))
    check_model(run, mine, origin(mine, NO_OPTIONS), forget=True)
    claim_model(run, mine, origin(mine, NO_OPTIONS))
    check_model(run, mine, origin(mine, NO_OPTIONS))


@pytest.mark.parametrize(
    "settings", [{"model": "hub/id"}, {"model": "tiny-none"}, {"model": "/none"}, {"model": ".", "kind": "openai"}]
)
def test_models_without_a_local_folder_have_no_files(settings: dict[str, str]) -> None:
    assert origin(CONFIG.model_copy(update=settings), NO_OPTIONS) == {}


def test_arguments_of_vllm_that_can_change_a_text_are_noticed(run: Run, mine: CaptionerConfig) -> None:
    resources = EngineOptions(engine_args={"max_num_batched_tokens": 4096})
    claim_model(run, mine, origin(mine, resources))
    commit_a_shard(run, "mine")
    check_model(run, mine, origin(mine, NO_OPTIONS))
    smaller_cache = EngineOptions(engine_args={"kv_cache_dtype": "fp8"})
    with pytest.raises(RecaptionError, match=r"\(changed: engine_args.kv_cache_dtype\)"):
        check_model(run, mine, origin(mine, smaller_cache))


def test_a_driver_without_the_models_folder_compares_nothing_of_it(run: Run, mine: CaptionerConfig) -> None:
    claim_model(run, mine, origin(mine, NO_OPTIONS))
    commit_a_shard(run, "mine")
    shutil.rmtree(mine.model)
    check_model(run, mine, origin(mine, NO_OPTIONS), forget=True)


def test_captions_of_a_model_that_is_no_longer_recorded_are_not_committed(run: Run) -> None:
    write_shard(run, 0, [1, 2])
    claim_settings(run, CONFIG)
    claim_model(run, CONFIG, {"model.safetensors": "second"})
    with pytest.raises(RecaptionError, match="now belongs to another model in grey"):
        caption(run, GreyEngine(), 0, model_digest=combined_digest({"model.safetensors": "first"}))
    caption(run, GreyEngine(), 0, model_digest=combined_digest({"model.safetensors": "second"}))


def test_saved_parts_of_another_model_are_not_used(run: Run) -> None:
    write_shard(run, 0, list(range(60)))
    with pytest.raises(EngineDead):
        caption(run, GreyEngine(max_requests=40), 0, part_size=10, model_digest="first")
    assert storage.list_names(run.caption_parts("grey", 0), ".parquet")
    second = GreyEngine()
    caption(run, second, 0, part_size=10, model_digest="second")
    assert sorted(second.requests) == list(range(60))
    assert len(rows(run, 0)) == 60


HUB_CONFIG = CaptionerConfig(name="far", kind="llava", model="someone/llava")


def test_a_run_keeps_the_commit_of_its_first_start_when_the_branch_moves(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = ["a" * 40, "b" * 40]
    monkeypatch.setattr(hub, "find_commit", lambda model, revision: commits.pop(0))
    assert with_claimed_revision(run, HUB_CONFIG) == HUB_CONFIG
    for _ in range(2):
        claim_revision(run, HUB_CONFIG)
        loaded = with_claimed_revision(run, HUB_CONFIG)
        assert loaded == HUB_CONFIG.model_copy(update={"revision": "a" * 40})
    assert commits == ["b" * 40]


def test_no_commit_is_recorded_for_a_commit_a_folder_or_an_unknown_branch(
    run: Run, mine: CaptionerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "find_commit", lambda model, revision: None)
    for config in (HUB_CONFIG, HUB_CONFIG.replace(revision="c" * 40), mine):
        claim_revision(run, config)
        assert not storage.exists(run.model_revision(config.name))
        assert with_claimed_revision(run, config) == config


def test_settings_that_replace_others_get_a_commit_of_their_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_commit", lambda model, revision: "a" * 40)
    claim_settings(run, HUB_CONFIG)
    claim_revision(run, HUB_CONFIG)
    claim_settings(run, HUB_CONFIG.replace(model="someone/other"))
    assert not storage.exists(run.model_revision("far"))


def test_a_text_that_is_added_later_gets_the_commit_of_the_texts_that_the_same_engine_makes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = ["a" * 40, "b" * 40]
    monkeypatch.setattr(hub, "find_commit", lambda model, revision: commits.pop(0))
    captioner = HUB_CONFIG.replace(prompts={"long": "Describe.", "tags": "Tag."})
    long, tags = captioner.texts
    claim_revision(run, long)
    claim_revision(run, tags, [long.name, tags.name])
    loaded = with_claimed_revision(run, captioner, [long.name, tags.name])
    assert loaded == captioner.replace(revision="a" * 40) and commits == ["b" * 40]


def test_texts_of_different_commits_are_not_made_by_one_engine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = ["a" * 40, "b" * 40]
    monkeypatch.setattr(hub, "find_commit", lambda model, revision: commits.pop(0))
    captioner = HUB_CONFIG.replace(prompts={"long": "Describe.", "tags": "Tag."})
    for text in captioner.texts:
        claim_revision(run, text)
    assert with_claimed_revision(run, captioner, ["far_tags"]).revision == "b" * 40
    with pytest.raises(RecaptionError, match=r"'far': its texts were made with different commits .*far_tags"):
        with_claimed_revision(run, captioner, ["far_long", "far_tags"])


def test_a_changed_adapter_counts_as_a_changed_model(tmp_path):
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    captioner = CaptionerConfig(name="x", kind="vlm", model=str(tmp_path / "model"), lora=str(tmp_path / "adapter"))
    before = origin(captioner, NO_OPTIONS)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    assert changed_files(before, origin(captioner, NO_OPTIONS)) == ["lora/adapter_config.json"]
