"""A setting that cannot be is refused, with its name and the fix."""

import pytest

from lotlip_data.training.config import METHODS, PRESETS, ConfigError, make_config


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
        ({"captioners": "llava"}, "`captioners`: 'llava' should be a valid list"),
    ],
)
def test_the_error_names_the_setting_and_the_fix(settings, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        make_config(**{"image_tower": "x", **settings})


def test_steps_are_full_batches_of_all_epochs_together():
    config = make_config(image_tower="x", batch=64, epochs=3, warm_up=2)
    assert config.steps(100) == 300 // 64


def test_too_few_samples_for_a_batch_or_the_warm_up_are_refused():
    config = make_config(image_tower="x", batch=64, epochs=1, warm_up=2)
    with pytest.raises(ConfigError, match="batch: 64 is more than"):
        config.steps(40)
    with pytest.raises(ConfigError, match="warm_up: 2 is not fewer than the training's 1 steps"):
        config.steps(64)
