"""A setting that cannot be is refused, with its name and the fix."""

import re

import pytest

from lotlip_data.training.config import LATER_SETTINGS, METHODS, PRESETS, ConfigError, make_config, recorded_setting


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_valid_at_every_preset(method, preset):
    assert make_config(method, preset, image_tower="x").method == method


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "siglip"}, "`method`: 'siglip' is unknown; did you mean 'clip'? Known are lit"),
        ({"preset": "big"}, "`preset`: 'big' is unknown; known are 3m"),
        ({"sub_caption": 3}, "`sub_caption`: there is no such setting; did you mean `sub_captions`?"),
        ({"batch": 1}, "`batch`: 1 is too small; it must be at least 2"),
        ({"lr": 0}, "`lr`: 0 is too small; it must be above 0"),
        ({"batch": "many"}, "`batch`: 'many' should be a valid integer"),
        ({"lr": "fast"}, "`lr`: 'fast' should be a valid number"),
        ({"method": "lit", "long_texts": 1}, "use lit_long"),
        ({"method": "lit_long", "corner_tokens": 2}, "use lotlip"),
        ({"long_texts": 0}, "lotlip needs at least 1"),
        ({"text_form": "nltk"}, "`text_form`: 'nltk' is unknown; known are authors, punkt"),
        ({"text_temperature": 0.5}, "does nothing without text_weights: score"),
        ({"text_weights": "score", "sub_captions": 0}, "this training has none; remove them"),
        ({"method": "lit", "best_sub_captions": 2}, "text_weights, best_sub_captions: choose among long texts"),
        ({"method": "lit", "short_text": "debiased"}, "short_text: debiased is made of long texts, and this training"),
        ({"sub_captions": 0, "short_text": "first_sub_caption"}, "first_sub_caption is made of long texts"),
        ({"sub_captions": "all", "sub_caption_choice": "diverse"}, "diverse draws 1 to S sub-captions"),
        ({"method": "clip", "sub_caption_choice": "diverse"}, "diverse draws 1 to S sub-captions"),
        ({"method": "multi_positive", "short_text": "debiased"}, "debiased is a part of one long text"),
        ({"method": "longclip", "loss": "sigmoid"}, "label_smoothing: has no meaning for the sigmoid of a pair"),
        ({"method": "lit", "short_weight": 0.5}, "short_weight: weighs short against long texts"),
        ({"method": "debias", "reduction": "mean"}, "short_weight: weighs the texts in place of reduction: mean"),
        ({"method": "lotlip", "components": 8}, "components: does nothing without short_image: principal_components"),
        ({"short_weight": 1}, "`short_weight`: 1 is too large; it must be below 1"),
        ({"label_smoothing": 1}, "`label_smoothing`: 1 is too large; it must be below 1"),
        ({"method": "clip", "start_from": "x"}, r"\(clip\) starts from fresh ones; .* set pretrained_image and pretra"),
        ({"captioners": "llava"}, "`captioners`: 'llava' should be a valid list"),
    ],
)
def test_the_error_names_the_setting_and_the_fix(settings, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        make_config(**{"image_tower": "x", **settings})


def test_the_proposed_command_keeps_the_preset_in_mind():
    with pytest.raises(ConfigError, match="with `--preset` and the other options as before"):
        make_config(preset="demo").steps(28)


def test_steps_are_full_batches_of_all_epochs_together():
    config = make_config(image_tower="x", batch=64, epochs=3, warm_up=2)
    assert config.steps(100) == 300 // 64


def test_too_few_samples_for_a_batch_or_the_warm_up_are_refused():
    config = make_config(image_tower="x", batch=64, epochs=1, warm_up=2)
    with pytest.raises(ConfigError, match="batch: 64 is more than"):
        config.steps(40)
    with pytest.raises(ConfigError, match="warm_up: 2 is not fewer than the 1 step of 1 epochs of 64 samples"):
        config.steps(64)


@pytest.mark.parametrize("samples", [2, 3, 36, 170, 1_000, 30_000, 500_000])
@pytest.mark.parametrize("method", ["lit", "lotlip"])
def test_the_settings_that_a_small_dataset_gets_proposed_work(samples, method):
    with pytest.raises(ConfigError) as error:
        make_config(method=method).steps(samples)
    assert f"lotlip-data train RUN --method {method}" in str(error.value)
    proposed = {name: int(value) for name, value in re.findall(r"--set (\w+)=(\d+)", str(error.value))}
    assert set(proposed) == {"batch", "warm_up"}
    assert make_config(method=method, **proposed).steps(samples) > proposed["warm_up"]


def test_later_settings_are_recorded_only_where_they_are_set_so_that_earlier_trainings_resume():
    for method in ("lit", "lit_long", "lit_longclip", "register", "lotlip", "clip", "lotlip_scratch"):
        assert not set(LATER_SETTINGS) & set(make_config(method, image_tower="x", text_weights="uniform").to_dict())
    changed = make_config("lit_longclip", short_image="features").to_dict()
    assert changed["short_image"] == "features"
    for method in ("longclip", "debias", "multi_positive"):
        recorded = make_config(method).to_dict()
        assert {name: recorded[name] for name in METHODS[method] if name in LATER_SETTINGS} == {
            name: value for name, value in METHODS[method].items() if name in LATER_SETTINGS
        }
    weighted = make_config(image_tower="x", text_weights="score", text_temperature=0.5, best_sub_captions=4).to_dict()
    assert {name: weighted[name] for name in LATER_SETTINGS if name in weighted} == {
        "text_weights": "score",
        "text_temperature": 0.5,
        "best_sub_captions": 4,
    }


def test_settings_that_are_not_recorded_have_the_value_that_they_had():
    for method, name, value in (
        ("lotlip", "loss", "softmax"),
        ("lit_longclip", "short_image", "principal_components"),
        ("lit_long", "short_image", "features"),
    ):
        recorded = make_config(method, image_tower="x").to_dict()
        assert name not in recorded and recorded_setting(recorded, name) == value
    assert recorded_setting({"method": "lit"}, "no_such_setting") is None


def test_a_preset_overrides_what_a_method_was_published_with_and_settings_override_both():
    published = make_config("longclip")
    assert (published.lr, published.batch, published.epochs) == (1e-6, 2048, 6)
    assert (published.start_from, published.stretch) == ("openai/clip-vit-base-patch16", "longclip")
    assert published.context_length == 248
    demo = make_config("longclip", "demo")
    assert (demo.lr, demo.batch, demo.label_smoothing) == (1e-3, 32, 0.1)
    assert make_config("longclip", "demo", lr=1e-5).lr == 1e-5
    other = make_config("debias", "demo", start_from="some/clip")
    assert (other.start_from, other.stretch, other.context_length) == ("some/clip", "longclip", 248)


def test_towers_that_are_given_replace_the_model_that_a_method_starts_from():
    """A rate for fine-tuning would leave fresh towers as they are."""
    lotlip = make_config("lotlip", text_tower="some/bert")
    for config in (make_config("longclip", "demo"), make_config("longclip", text_tower="some/bert")):
        assert (config.start_from, config.stretch, config.context_length) == (None, None, 128)
        assert (config.betas, config.eps) == (lotlip.betas, lotlip.eps)
    assert (config.lr, config.warm_up, config.batch) == (lotlip.lr, lotlip.warm_up, lotlip.batch)
    assert make_config("multi_positive", image_tower="some/vit").batch == 1024, "it does not start from a model"


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("longclip", {"corner_tokens": 2}),
        ("debias", {"corner_tokens": 2}),
        ("multi_positive", {"corner_tokens": 2}),
        ("lotlip", {"loss": "sigmoid"}),
        ("lotlip", {"short_text": "debiased", "short_image": "principal_components"}),
        ("debias", {"text_weights": "score", "best_sub_captions": 4}),
    ],
)
def test_settings_of_one_method_combine_with_another(method, settings):
    config = make_config(method, **settings)
    assert all(getattr(config, name) == value for name, value in settings.items())
