"""A prompt with a `{name}` that is no column of a sample is named before anything starts."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import get_default
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.captioners import PoolSettings
from lotlip_data.pipeline import inspection
from lotlip_data.pipeline.core.findings import Level
from lotlip_data.pipeline.core.outcome import Inspection
from lotlip_data.pipeline.readiness.manifest_checks import check_models
from lotlip_data.pipeline.recaptioning import actor_pool, job_checks, stage
from lotlip_data.pipeline.recaptioning.config import CaptionerJob
from lotlip_data.pipeline.recaptioning.job_checks import check_jobs, check_prompts
from lotlip_data.pipeline.recaptioning.stage import recaption
from tests.pipeline import run_fixture
from tests.pipeline.recaptioning.grey_engine import CONFIG, GreyEngine, caption, write_shard

MESSAGE = (
    "captioner 'grey': prompt: {alt} is no column of a sample; the columns are {raw}, {raws}, {source}, {sources}, "
    "{url}, {width}, {height}, {original_width}, {original_height}; for the text {alt} itself, write {{alt}}"
)


def config(**settings: object) -> CaptionerConfig:
    return CONFIG.replace(**settings)


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({"prompt": "Describe {alt} of {source} and {alt}."}, [MESSAGE]),
        ({"prompt": "Describe {raw}.", "prompt_without_raw": "Describe {alt}."}, [MESSAGE]),
        ({"prompts": {"a": "Describe it.", "b": "{alt}"}}, [MESSAGE.replace("'grey'", "'grey_b'")]),
        ({"prompt": '{{alt}} {raw}: {"a": 1}, { alt }, {a b}, {0}, {}, {"a": {}}, {a: {raw}}'}, []),
    ],
)
def test_an_unknown_field_is_named_with_the_known_ones(settings: dict[str, object], messages: list[str]) -> None:
    assert [str(check) for check in check_prompts(config(**settings).texts)] == messages


def test_recaption_and_run_name_it_before_anything_starts(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    write_shard(run, 0, [1, 2])
    with pytest.raises(UserError) as error:
        recaption(run, [CaptionerJob(config(prompt="Describe {alt}."), PoolSettings())])
    assert str(error.value) == MESSAGE
    manifest = run_fixture.make_manifest()
    entry = {"name": "grey", "kind": "llava", "model": "grey", "prompt": "Describe {alt}."}
    manifest = type(manifest).parse(manifest.explicit | {"captioners": [entry]}, "manifest")
    assert MESSAGE in map(str, check_models(manifest, run))


def test_plan_names_it_as_a_problem(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url,caption\nhttp://a.example/1,x\n")
    entry = {"name": "grey", "kind": "llava", "model": "tiny-llava", "prompt": "Describe {alt}."}
    sources = [{"name": "a", "files": str(tmp_path / "l.csv")}]
    planned = inspection.plan({"name": "m", "sources": sources, "captioners": [entry]})
    assert planned.problems == [MESSAGE]


def test_a_captioner_of_a_run_that_has_captions_keeps_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release without fields has made them, with the braces as text."""
    from tests.pipeline.recaptioning import grey_engine

    earlier = config(prompt="Describe {alt}.")
    monkeypatch.setattr(grey_engine, "CONFIG", earlier)
    run = Run.at(str(tmp_path / "run"))
    write_shard(run, 0, [1, 2])
    caption(run, GreyEngine(), 0)
    assert recaption(run, [CaptionerJob(earlier, PoolSettings())]).nothing_to_do


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_a_setting_that_only_vllm_has_is_named_before_an_engine_starts(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, whose machines may have GPUs, it is a warning."""
    job = CaptionerJob(get_default("tiny-llava").replace(quantization="fp8_per_channel"), PoolSettings(engine=engine))
    levels = {}
    for address in ("", "head:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        (check,) = (check for check in check_jobs([job]) if "quantization" in check.finding)
        assert check.finding.startswith("quantization: fp8_per_channel: only vLLM has this")
        levels[address] = check.level
    assert levels == {"": Level.ERROR, "head:6379": Level.WARNING}


def test_texts_that_are_not_selected_do_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has an unknown field, another a form that transformers does not enforce."""
    monkeypatch.setattr(stage, "cluster", contextlib.nullcontext)
    monkeypatch.setattr(actor_pool, "run_pools", lambda *arguments: None)
    form = {"prompt": "Tag it.", "structured": {"choice": ["a", "b"]}}
    prompts = {"long": "Describe {raw}.", "tags": form, "wrong": "Describe {alt}."}
    several = get_default("tiny-llava").replace(name="tiny", prompts=prompts)
    run = Run.at(str(tmp_path / "run"))
    write_shard(run, 0, [1])
    job = CaptionerJob(several, PoolSettings(engine="transformers"))
    with pytest.raises(UserError, match=r"captioner 'tiny_wrong': prompt: \{alt\}"):
        recaption(run, [job])
    with pytest.raises(UserError, match=r"captioner 'tiny': structured \(of tiny_tags\): only vLLM has this"):
        recaption(run, [replace(job, selected=("tiny_long", "tiny_tags"))])
    assert dict(recaption(run, [replace(job, selected=("tiny_long",))]).skipped) == {"tiny_long": 0}


def test_a_text_that_has_captions_needs_no_engine_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can have been made by vLLM before, and the others follow in transformers."""
    form = {"prompt": "Tag it.", "structured": {"choice": ["a", "b"]}}
    entry = {
        "preset": "tiny-llava",
        "prompts": {"long": "Describe it.", "tags": form},
        "pool": {"engine": "transformers"},
    }
    manifest = run_fixture.make_manifest()
    manifest = type(manifest).parse(manifest.explicit | {"captioners": [entry], "train": []}, "manifest")
    run = Run.at(str(tmp_path / "run"))
    assert Level.ERROR in [check.level for check in check_models(manifest, run)]
    captioned = {"tiny-llava_tags": [0]}
    monkeypatch.setattr(job_checks, "captioned_shards", lambda run, name: captioned.get(name, []))
    assert Level.ERROR not in [check.level for check in check_models(manifest, run)]


def plan_of(tmp_path: Path, entry: dict[str, object], **hardware: object) -> Inspection:
    (tmp_path / "l.csv").write_text("url,caption\nhttp://a.example/1,x\n")
    sources = [{"name": "a", "files": str(tmp_path / "l.csv")}]
    return inspection.plan({"name": "m", "sources": sources, "captioners": [entry]}, hardware=hardware)


def test_plan_names_what_only_vllm_has_where_vllm_would_not_run(tmp_path: Path) -> None:
    entry = {"preset": "llava", "structured": {"choice": ["photo", "drawing"]}}
    assert plan_of(tmp_path, entry, gpus=8).problems == []
    assert plan_of(tmp_path, entry | {"pool": {"engine": "vllm"}}, gpus=0).problems == []
    for changed, gpus in (({}, 0), ({"pool": {"engine": "transformers"}}, 8), ({"pool": {"num_gpus": 0}}, 8)):
        (problem,) = plan_of(tmp_path, entry | changed, gpus=gpus).problems
        assert problem.startswith("captioner 'llava': structured: only vLLM has this") and "--engine vllm" in problem


def test_plan_names_a_package_that_a_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_checks, "missing_packages", list)  # as if none was installed
    planned = plan_of(tmp_path, {"preset": "smolvlm2"})
    (note,) = [line for line in planned.lines if line.startswith("note") and "smolvlm2" in line]
    assert "needs the package num2words: pip install num2words on every machine that captions" in note
    assert planned.problems == []
