"""A manifest accepts exactly the names that the code knows, and freezes entries as they were written."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lotlip_data.captioners import presets
from lotlip_data.manifests import storage
from lotlip_data.manifests.manifest import (
    Manifest,
    ManifestError,
    dump,
    freeze,
    frozen,
    held_for,
    image_settings,
    parse,
)
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.captioners import CaptionerPreset
from lotlip_data.manifests.settings.evaluation import TaskName
from lotlip_data.manifests.settings.training import Method, TrainingPreset
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from lotlip_data.training.config import METHODS, PRESETS
from lotlip_data.training.evaluation.tasks.registry import TASKS

START = "name: x\nsources: [{name: a, files: a.csv}]\n"


def read(section: str) -> Manifest:
    return parse(START + section, "m.yaml")


def test_the_names_of_a_manifest_are_those_that_the_code_knows() -> None:
    assert set(get_args(CaptionerPreset)) == set(presets.PRESETS)
    assert set(get_args(TaskName)) == {"synthetic", *TASKS, "custom"}
    assert set(get_args(Method)) == set(METHODS) and set(get_args(TrainingPreset)) == set(PRESETS)


@pytest.mark.parametrize(
    ("section", "written"),
    [
        ("captioners: [llava, {preset: llava}]", {"captioners": ["llava", "llava"]}),
        (
            "captioners: [{preset: llava, name: b, temperature: 1, pool: {max_actors: 2, engine_options: {}}}]",
            {
                "captioners": [
                    {"preset": "llava", "name": "b", "temperature": 1, "pool": {"max_actors": 2, "engine_options": {}}}
                ]
            },
        ),
        (
            "train: [{preset: 3m, batch: 2560, ray: {workers: 2}}]",
            {"train": [{"preset": "3m", "batch": 2560, "ray": {"workers": 2}}]},
        ),
        ("evaluate: [world]", {"evaluate": ["synthetic"]}),
        ("evaluate: [{task: dci, data: /d}]", {"evaluate": [{"task": "dci", "data": "/d"}]}),
    ],
)
def test_an_entry_is_frozen_as_it_was_written_so_that_presets_still_apply(
    section: str, written: dict[str, Any]
) -> None:
    manifest = read(section)
    assert {name: manifest.model_dump(mode="json")[name] for name in written} == written
    assert parse(dump(manifest), "frozen") == manifest


def test_a_manifest_without_new_settings_is_frozen_as_in_earlier_releases() -> None:
    """Keys in this order, so that the manifest in an existing dataset.json does not change."""
    sections = yaml.safe_load(dump(read("captioners: [llava, {preset: llava, name: b}]\ntrain: [{preset: demo}]")))
    assert list(sections) == [
        *("name", "sources", "seed", "sample", "samples_per_shard", "download", "captioners", "shard", "clean"),
        *("train", "evaluate"),
    ]
    assert sections["captioners"] == ["llava", {"name": "b", "preset": "llava"}]
    assert (sections["train"], sections["evaluate"]) == ([{"preset": "demo"}], [])


def test_a_run_of_an_earlier_release_continues_with_its_manifest(tmp_path: Path) -> None:
    """Earlier releases wrote the entries of `captioners` and `train` as they were, and `world` for `synthetic`."""
    section = "captioners: [tiny-llava, {preset: llava, pool: {num_gpus: 1}}]\ntrain: [{method: lit, lr: 1}]\n"
    manifest, run = read(f"{section}evaluate: [world]"), Run.at(str(tmp_path))
    earlier = yaml.safe_load(dump(manifest)) | {
        "captioners": ["tiny-llava", {"preset": "llava", "pool": {"num_gpus": 1}}],
        "train": [{"method": "lit", "lr": 1}],
        "evaluate": ["world"],
    }
    text = yaml.safe_dump(earlier, sort_keys=False).encode()
    storage.replace(run.manifest, text)
    assert held_for(manifest, run) == manifest == frozen(run)
    freeze(manifest, run)
    assert storage.read_bytes(run.manifest) == text  # nothing has changed


@pytest.mark.parametrize("full_decode", [False, True])
def test_a_run_of_before_full_decode_and_max_per_host_continues_with_either_decode(
    tmp_path: Path, full_decode: bool
) -> None:
    manifest, run = read(f"download: {{full_decode: {str(full_decode).lower()}}}"), Run.at(str(tmp_path))
    held, recorded = yaml.safe_load(dump(manifest)), image_settings(manifest)
    del recorded["download"]["full_decode"], held["download"]["max_per_host"]
    if not full_decode:
        del held["download"]["full_decode"]
    storage.replace(run.manifest, yaml.safe_dump(held).encode())
    storage.replace(run.plan, json.dumps({"settings": recorded}).encode())
    assert held_for(manifest, run) == manifest == frozen(run)
    freeze(manifest, run)


def test_the_decode_of_a_run_cannot_change_once_it_is_recorded(tmp_path: Path) -> None:
    manifest, run = read(""), Run.at(str(tmp_path))
    freeze(manifest, run)
    storage.replace(run.plan, json.dumps({"settings": image_settings(manifest)}).encode())
    with pytest.raises(ManifestError, match=r"`download\.full_decode` is false in the run, true in the manifest given"):
        freeze(read("download: {full_decode: true}"), run, update=True)


def test_a_setting_that_is_given_differs_from_one_that_a_preset_decides() -> None:
    assert read("train: [{preset: demo}]") != read("train: [{preset: demo, batch: 2560}]")
    assert read("captioners: [{preset: llava}]") == read("captioners: [llava]")


@pytest.mark.parametrize(
    ("settings", "identity"),
    [
        ("{preset: llava, revision: null}", "llava@8573270c1f8f"),
        ("{preset: llava, revision: null, temperature: 1}", "llava@43d93812caaf"),
        ("{preset: llava, revision: null, temperature: 1.0}", "llava@da6a279c8716"),
        ("{preset: llava, revision: 2025}", "llava@cc95ad972223"),
    ],
)
def test_a_captioners_id_covers_numbers_as_they_are_written(settings: str, identity: str) -> None:
    """1 and 1.0 differ in the ids of runs that exist, through the frozen manifest too."""
    manifest = read(f"captioners: [{settings}]")
    for held in (manifest, parse(dump(manifest), "frozen")):
        (job,) = resolve_captioners(held.captioners)
        assert job.config.id == identity


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("scal: 3M", "`scal`: there is no such setting; did you mean `scale`?"),
        (
            "captioners: [shargpt4v]",
            "`captioners.0.preset`: 'shargpt4v' is unknown; did you mean 'sharegpt4v'? Known are ",
        ),
        ("samples-per-shard: 3", "`samples-per-shard`: there is no such setting; did you mean `samples_per_shard`?"),
        ("timeout: 3", "`timeout`: there is no such setting; did you mean `download.timeout`?"),
        ("near_duplicate: 3", "`near_duplicate`: there is no such setting; did you mean `clean.near_duplicates`?"),
        ("train: [{method: lotlip, learning_rate: 1}]", "`train.0.learning_rate`: there is no such setting; did you"),
        ("warmup: 3", "`warmup`: there is no such setting; did you mean `train[].warm_up`?"),
        (
            "captioners: [{preset: llava, promt: x}]",
            "`captioners.0.promt`: there is no such setting; did you mean `prompt`?",
        ),
        (
            "captioners: [{preset: llava, pool: {engine_options: {batchsize: 1}}}]",
            "`captioners.0.pool.engine_options.batchsize`: there is no such setting; did you mean `batch_size`?",
        ),
        ("captioners: [{kind: openai}]", "`captioners.0`: name, model must be given, or a `preset`"),
        (
            "captioners: [{preset: llava, pool: {min_actors: 3, max_actors: 2}}]",
            "`captioners.0.pool`: `min_actors`: 3 must not exceed max_actors=2",
        ),
        ("train: [{long_texts: several}]", "`train.0.long_texts`: 'several' should be a valid integer"),
        ("train: [4]", "`train.0`: 4 is not a mapping of settings"),
        (
            "evaluate: [urban1k]",
            "`evaluate.0.task`: 'urban1k' is unknown; did you mean 'urban-1k'? Known are synthetic, dci",
        ),
        ("evaluate: [dci]", "`evaluate.0`: the files of dci are needed; write {task: dci, data: FOLDER}, or set"),
        (
            "evaluate: [{task: synthetic, data: /d}]",
            "`evaluate.0`: the task synthetic is generated, so it has no `data`",
        ),
        ("evaluate: [world, synthetic]", "`evaluate` names synthetic twice"),
        ("download: {per_hosts: 1}", "`download.per_hosts`: there is no such setting; did you mean `per_host`?"),
        ("wholly_different: 1", "`wholly_different`: there is no such setting; known are name, sources, seed"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_the_nearest_name_or_the_fix(section: str, message: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(section)
    assert str(error.value).startswith(f"m.yaml: {message}")
