"""Entries of a manifest's `captioners` are resolved into captioners, engines and pools."""

from typing import Any

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.recaptioning.config import (
    engine_options,
    gpus_per_actor,
    resolve_captioners,
    select_captioners,
)


@pytest.mark.parametrize(
    ("entry", "cluster_gpus", "gpus"),
    [
        ({"preset": "llava"}, 8, 1.0),
        ({"preset": "llava"}, 0, 0.0),
        ({"preset": "llava", "tensor_parallel_size": 2}, 8, 2.0),
        ({"preset": "llava", "tensor_parallel_size": 2, "pool": {"num_gpus": 4}}, 8, 4.0),
        ({"preset": "llava", "pool": {"num_gpus": 0.5}}, 8, 0.5),
        ({"name": "e", "kind": "openai", "model": "m"}, 8, 0.0),
    ],
)
def test_an_actor_reserves_all_gpus_of_its_engine(entry: dict, cluster_gpus: float, gpus: float) -> None:
    """If Ray reserved one GPU for an engine on two, it would give the second GPU to another actor."""
    (job,) = resolve_captioners([entry])
    assert gpus_per_actor(job.config, job.pool, cluster_gpus) == gpus


@pytest.mark.parametrize(
    ("settings", "spread", "gpus", "share"),
    [
        ({}, 1, 0.0, 0.9),
        ({}, 1, 1.0, 0.9),
        ({"gpu_memory_utilization": 0.95}, 1, 1.0, 0.95),
        ({}, 1, 0.5, 0.45),
        ({"gpu_memory_utilization": 0.5}, 1, 0.5, 0.45),
        ({"gpu_memory_utilization": 0.3}, 1, 0.5, 0.3),
        ({}, 1, 1 / 3, 0.3),
        ({}, 2, 1.0, 0.45),
        ({}, 2, 2.0, 0.9),
        ({}, 1, 2.0, 0.9),
    ],
)
def test_the_engines_of_actors_that_share_a_gpu_share_its_memory(
    settings: dict[str, float], spread: int, gpus: float, share: float
) -> None:
    """With the default share of a whole GPU, the second of two actors at half a GPU would never start."""
    pool = {"engine_options": settings}
    (job,) = resolve_captioners([{"preset": "llava", "tensor_parallel_size": spread, "pool": pool}])
    assert engine_options(job.config, job.pool, gpus).gpu_memory_utilization == pytest.approx(share)


@pytest.mark.parametrize("pool", [5, "x", ["engine"]])
def test_a_pool_that_is_not_a_mapping_is_refused(pool: Any) -> None:
    with pytest.raises(UserError, match=r"`pool`: .* is not a mapping of settings"):
        resolve_captioners([{"preset": "tiny-llava", "pool": pool}])


def test_an_empty_pool_has_the_default_settings() -> None:
    assert resolve_captioners([{"preset": "tiny-llava", "pool": None}]) == resolve_captioners(["tiny-llava"])


def test_only_an_engine_of_the_captioners_kind_is_accepted() -> None:
    served = {"name": "e", "kind": "openai", "model": "m"}
    for entry, engine in ((served, "endpoint"), (served, "auto"), ("llava", "transformers")):
        assert resolve_captioners([entry], {"engine": engine})[0].pool.engine == engine
    with pytest.raises(UserError, match="captioner 'e': `engine`: 'vllm' is unknown; known are auto, endpoint"):
        resolve_captioners([served], {"engine": "vllm"})


def test_another_model_does_not_get_the_revision_of_its_presets_model() -> None:
    entries = [
        {"preset": "llava"},
        {"preset": "llava", "model": "/models/mine", "name": "folder"},
        {"preset": "llava", "model": "me/mine", "revision": "v2", "name": "hub"},
        {"preset": "llava", "revision": None, "name": "branch"},
    ]
    commit, *others = (job.config.revision for job in resolve_captioners(entries))
    assert commit and others == [None, "v2", None]


def test_a_name_selects_the_manifests_captioner_of_that_name_before_the_preset() -> None:
    entries = [
        "instructblip",
        {"preset": "llava", "name": "mine", "max_new_tokens": 77},
        {"preset": "llava", "seed": 5},
    ]
    selected = select_captioners(entries, ["mine", "llava", "tiny-llava"])
    assert [(job.config.name, job.config.model) for job in selected] == [
        ("mine", "llava-hf/llava-1.5-7b-hf"),
        ("llava", "llava-hf/llava-1.5-7b-hf"),
        ("tiny-llava", "tiny-llava"),
    ]
    assert (selected[0].config.max_new_tokens, selected[1].config.seed) == (77, 5)


def test_without_a_name_all_captioners_of_the_manifest_are_selected() -> None:
    entries = ["instructblip", {"preset": "llava", "name": "mine"}]
    assert select_captioners(entries, []) == resolve_captioners(entries)
    assert select_captioners([], ["tiny-llava"]) == resolve_captioners(["tiny-llava"])


def test_another_captioner_can_be_selected_if_one_of_the_manifest_cannot_run_here() -> None:
    entries = [{"name": "x", "kind": "not-installed", "model": "m"}, "llava"]
    assert select_captioners(entries, ["llava"]) == resolve_captioners(["llava"])


QWEN = {
    "name": "qwen",
    "kind": "llava",
    "model": "m",
    "max_new_tokens": 200,
    "prompts": {"long": "Describe it.", "short": "Name it.", "tags": {"prompt": "Tag it.", "max_new_tokens": 48}},
}


def test_a_captioner_with_prompts_is_one_job_whose_texts_have_names_and_settings_of_their_own() -> None:
    (job,) = resolve_captioners([QWEN])
    assert [(text.name, text.prompt, text.max_new_tokens) for text in job.texts] == [
        ("qwen_long", "Describe it.", 200),
        ("qwen_short", "Name it.", 200),
        ("qwen_tags", "Tag it.", 48),
    ]


def test_a_preset_can_make_several_texts() -> None:
    (job,) = resolve_captioners([{"preset": "llava", "prompts": {"long": "Describe it."}}])
    assert [(text.name, text.kind, text.prompt) for text in job.texts] == [("llava_long", "llava", "Describe it.")]


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (["qwen"], ["qwen_long", "qwen_short", "qwen_tags"]),
        (["qwen_tags"], ["qwen_tags"]),
        (["qwen_tags", "qwen_long"], ["qwen_long", "qwen_tags"]),
        (["qwen_tags", "qwen"], ["qwen_long", "qwen_short", "qwen_tags"]),
        (["qwen", "qwen_tags"], ["qwen_long", "qwen_short", "qwen_tags"]),
        ([], ["qwen_long", "qwen_short", "qwen_tags"]),
    ],
)
def test_a_name_selects_a_captioner_with_all_its_texts_or_one_text(chosen: list[str], names: list[str]) -> None:
    """However texts are selected, one engine makes them, and it is loaded for all texts of the captioner."""
    (job,) = select_captioners([QWEN], chosen)
    assert [text.name for text in job.texts] == names
    assert len(job.config.texts) == 3


TAGGED = {"json_schema": {"type": "object", "properties": {"tags": {"type": "string"}}}, "columns": ["tags"]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [QWEN, {**QWEN, "name": "qwen_long", "prompts": {"x": "X."}}],
            "qwen_long, a text of qwen, and qwen_long, have the same name qwen_long",
        ),
        (
            ["llava", {"preset": "llava", "prompts": {"long": "X."}}],
            "llava is named twice",
        ),
        (
            [{"preset": "llava", "name": "llava_long"}, {"preset": "llava", "prompts": {"long": "X."}}],
            "llava_long, and llava_long, a text of llava, have the same name llava_long",
        ),
        (
            [
                {"preset": "llava", "name": "a", "prompts": {"b_c": "X."}},
                {"preset": "llava", "name": "a_b", "prompts": {"c": "Y."}},
            ],
            "a_b_c, a text of a, and a_b_c, a text of a_b, have the same name a_b_c",
        ),
        (
            [{"preset": "llava", "structured": TAGGED}, {"preset": "llava", "name": "llava_tags"}],
            "the column of 'tags' of llava, and llava_tags, have the same name llava_tags",
        ),
        (
            [{"preset": "llava", "prompts": {"t": {"prompt": "X.", "structured": TAGGED}, "t_tags": "Y."}}],
            "llava_t_tags, a text of llava, and the column of 'tags' of llava_t, have the same name llava_t_tags",
        ),
    ],
)
def test_two_captioners_texts_or_columns_of_one_name_are_refused(entries: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=f"captioners: {message}"):
        resolve_captioners(entries)
