"""The arms cover the paper's rows, and results are keyed by what an arm computes."""

import dataclasses
from pathlib import Path

import pytest

from lotlip_data.pipeline.study import design as design_module
from lotlip_data.pipeline.study.comparisons import COMPARISONS, EQUAL_POINTS, PRIMARY, TOPICS
from lotlip_data.pipeline.study.data import BLOCKS
from lotlip_data.pipeline.study.design import (
    ARMS,
    FIRST_DEVELOPMENT_SEED,
    MORE_SEEDS,
    SEEDS,
    Design,
    plan_seeds,
    with_starts,
)
from lotlip_data.pipeline.study.paper_results import PRINTED
from lotlip_data.synthetic.hard_scenes import WebNoise
from lotlip_data.training.config import METHODS
from tests.pipeline.study.results_fixture import DESIGN


def test_the_arms_vary_what_the_paper_varies() -> None:
    """Tables 2, 3, 7 and 9, and the beginning of Figures 2 and 5."""
    configs = {name: arm.config(DESIGN, 0) for name, arm in ARMS.items()}
    for method in ("lit", "lit_long", "lit_longclip", "register", "lotlip"):
        assert configs[method].method == method
    corners = {name: (configs[name].corner_tokens, configs[name].corner_mask) for name in ARMS if "lotlip" in name}
    assert [corners[name] for name in ("lotlip_m1", "lotlip", "lotlip_m4")] == [(1, True), (2, True), (4, True)]
    assert not configs["unmasked"].corner_mask and configs["unmasked"].corner_loss
    assert [configs[f"only_{name}"].captioners for name in ("instructblip", "llava", "sharegpt4v")] == [
        ("instructblip",),
        ("llava",),
        ("sharegpt4v",),
    ]
    assert [configs[name].sub_captions for name in ("lit_long_s1", "lit_long")] == [1, 3]


def test_later_methods_start_from_one_clip_per_seed_and_keep_their_rules() -> None:
    """Their texts and losses are the published ones. The image tower is locked, and no position is stretched."""
    for name, short_text in (("longclip", "first_sub_caption"), ("debias", "debiased"), ("clip_long", "raw")):
        config = ARMS[name].config(DESIGN, 3)
        assert config.start_from == f"models/{ARMS['lit'].key(DESIGN)}-3"
        assert config.short_text == short_text and config.sub_captions == "all"
        assert config.lock_image and config.stretch is None and config.corner_tokens == 0
    assert ARMS["debias"].config(DESIGN, 3).short_weight == 0.1 and ARMS["longclip"].config(DESIGN, 3).label_smoothing


def test_every_arm_has_the_design_s_settings_steps_and_seed() -> None:
    for arm in ARMS.values():
        config = arm.config(DESIGN, 7)
        changed = METHODS[arm.method] | dict(arm.settings)
        towers = {"image_tower", "text_tower"} if arm.start else {"text_tower"}  # a model gives both towers
        own = {name: value for name, value in DESIGN.settings.items() if name not in changed.keys() | towers}
        assert {name: getattr(config, name) for name in own} == own
        assert config.steps(DESIGN.scenes) == DESIGN.steps and config.seed == 7
        paths = (config.start_from,) if arm.start else (config.image_tower, config.text_tower)
        assert not any(Path(path or "/").is_absolute() for path in paths), "a study's folder can be moved"


def test_an_arm_that_others_start_from_has_their_seeds() -> None:
    planned = plan_seeds(pilot=False)
    assert all(set(planned[name]) <= set(planned[arm.start]) for name, arm in ARMS.items() if arm.start)
    assert {len(seeds) for seeds in planned.values()} == {SEEDS, MORE_SEEDS}
    assert {len(seeds) for seeds in plan_seeds(False, 5).values()} == {5}
    assert not {*planned["lotlip"]} & {*plan_seeds(pilot=True)["lotlip"]}


def test_a_key_depends_on_everything_that_an_arm_computes_except_the_seed() -> None:
    assert len({arm.key(DESIGN) for arm in ARMS.values()}) == len(ARMS)
    changes = (
        {"settings": DESIGN.settings | {"lr": 5e-4}},
        {"settings": DESIGN.settings | {"image_tower": "tiny-vit"}},
        {"settings": DESIGN.settings | {"text_tower": "tiny-bert"}},
        {"steps": 7},
        {"text_layers": 1},
        {"scenes": 96},
        {"noise": WebNoise(0.0, 0.0, 0.0)},
        {"gallery": dataclasses.replace(DESIGN.gallery, groups=7)},
    )
    designs = [DESIGN, *(dataclasses.replace(DESIGN, **change) for change in changes)]
    assert len({ARMS["lotlip"].key(design) for design in designs}) == len(designs)


def test_a_key_depends_on_the_towers_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ARMS["lotlip"].key(DESIGN)
    monkeypatch.setattr(design_module, "_weights_digest", lambda tower: "other weights")
    assert ARMS["lotlip"].key(DESIGN) != before


def test_development_seeds_and_final_seeds_are_apart_and_share_no_scenes() -> None:
    assert SEEDS < MORE_SEEDS <= FIRST_DEVELOPMENT_SEED
    seeds = (0, 1, MORE_SEEDS - 1, FIRST_DEVELOPMENT_SEED, FIRST_DEVELOPMENT_SEED + 1)
    training = [{scene.seed for scene in BLOCKS.training_scenes(seed, 100)} for seed in seeds]
    evaluation = [set(BLOCKS.evaluation_seeds(seed)) for seed in seeds]
    blocks = [*training, *evaluation]
    assert len(set().union(*blocks)) == sum(map(len, blocks))
    assert Design().scenes <= BLOCKS.training
    with pytest.raises(ValueError, match="a seed has"):
        BLOCKS.training_scenes(0, BLOCKS.training + 1)
    with pytest.raises(ValueError, match="has no scenes for it"):
        BLOCKS.evaluation_seeds(10**6)


def test_an_arm_brings_the_arm_that_it_starts_from() -> None:
    assert [arm.name for arm in with_starts(["longclip", "register"])] == ["lit", "register", "longclip"]
    other = dataclasses.replace(DESIGN, noise=WebNoise(0.0, 0.0, 0.0))
    assert ARMS["longclip"].config(DESIGN, 0).start_from != ARMS["longclip"].config(other, 0).start_from


def test_comparisons_are_differences_of_arms_and_topics_show_their_rows() -> None:
    for topic in TOPICS:
        assert {name for each in topic.comparisons for name in each.arms} - {"lit_longclip"} <= set(topic.arms)
        assert set(topic.arms) <= set(ARMS)
    for comparison in COMPARISONS:
        assert sum(weight for _, weight in comparison.weights) == pytest.approx(0)
        assert comparison.sign in ((1, -1) if comparison.primary else (1, 0, -1))
    assert {name for topic in TOPICS for name in topic.arms} == set(ARMS), "an arm that answers nothing is not trained"
    assert 10 <= len(PRIMARY) <= 15 and len(set(PRIMARY)) == len(PRIMARY)


def test_the_expected_direction_is_that_of_the_paper_s_figures() -> None:
    assert set(PRINTED) <= set(ARMS)
    for comparison in COMPARISONS:
        if comparison.printed is not None:
            values = sum(weight * PRINTED[name][comparison.metric] for name, weight in comparison.weights)
            assert comparison.printed == pytest.approx(values)
            assert comparison.sign * values > 0 or (comparison.sign == 0 and abs(values) < EQUAL_POINTS)
    assert PRINTED["lotlip"]["long"] - PRINTED["lit_long"]["long"] == pytest.approx(1.975)
