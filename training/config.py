"""Settings of a training: the paper's where it gives them, ours where nobody published any."""

import math
from typing import Any

from pydantic import ValidationError, model_validator

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import describe_errors, unknown_name
from lotlip_data.manifests.settings.training import TrainingSettings
from lotlip_data.manifests.wording import count

_SCRATCH = {"lock_image": False, "pretrained_image": False, "pretrained_text": False, "images": "pixels"}

METHODS: dict[str, dict[str, Any]] = {
    "lit": {"long_texts": 0, "corner_tokens": 0},
    "lit_long": {"corner_tokens": 0},
    "lit_longclip": {"corner_tokens": 0},
    "register": {"corner_mask": False, "corner_loss": False},
    "lotlip": {},
    "clip": {"long_texts": 0, "corner_tokens": 0, **_SCRATCH},
    "lotlip_scratch": _SCRATCH,
}
"""The settings in which a method differs from LoTLIP (paper, Tables 2, 7 and 8).

`lit_longclip` matches raw texts to the principal components of the image features, as Long-CLIP does. `clip` and
`lotlip_scratch` train both towers from scratch. The variants of LoTLIP in the paper are settings of `lotlip`:
`corner_tokens` 0…4, `corner_mask` off, `sub_captions` 0…8, `context_length` 32…512, `captioners`."""

CHANGEABLE_ON_RESUME = (
    "accumulate",
    "activation_checkpointing",
    "compile",
    "checkpoint_every",
    "keep_checkpoints",
    "decoders",
)
"""Settings that may change when a training resumes. They change results in the last digits only, except that
`accumulate` also changes what dropout draws."""

LATER_SETTINGS = ("text_weights", "text_temperature", "best_sub_captions", "start_from", "stretch")
"""Settings that trainings of earlier versions do not record. At their defaults they change nothing and are not
recorded, so that such trainings resume."""

PRESETS: dict[str, dict[str, Any]] = {
    # The paper gives epochs and batch size for CC3M and for all five sources. It gives none for the scales between:
    # these have the same 10 epochs, and batches that grow with the data as the paper's do.
    "3m": {"epochs": 10, "batch": 2560, "weight_decay": 0.5},
    "12m": {"epochs": 10, "batch": 8192},
    "30m": {"epochs": 10, "batch": 16_384},
    "100m": {"epochs": 10, "batch": 16_384, "warm_up": 10_000},
    # About 1,500 rendered scenes, tiny towers, one core a method: see docs/development/notes/training.md.
    "demo": {
        "image_tower": "tiny-vit",
        "text_tower": "tiny-bert",
        "epochs": 12,
        "batch": 32,
        "long_texts": 1,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "warm_up": 50,
        "checkpoint_every": 100,
    },
}


SMALL_STEPS = 50
"""Steps that the settings proposed for a small dataset aim at."""


class ConfigError(UserError):
    """A setting that cannot be; the message names it and the fix."""


_OWN_TOWERS = tuple(TrainingSettings.model_fields[name].default for name in ("image_tower", "text_tower"))


class TrainConfig(TrainingSettings):
    """One training: settings that fit together. `make_config` makes it from a method and a preset."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        self._check_images()
        self._check_method()
        self._check_scores()
        return self

    def _check_images(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale: {low}, {high} are not two shares of an image; such as 0.9, 1.0")
        if self.start_from and not (self.pretrained_image and self.pretrained_text):
            raise ConfigError("start_from: gives both towers their weights; remove it, or pretrained_image/text: false")
        if self.start_from and (self.image_tower, self.text_tower) != _OWN_TOWERS:
            raise ConfigError("start_from: gives both towers; remove it, or image_tower and text_tower")
        if not self.lock_image and self.images == "features":
            raise ConfigError("images: an image tower that learns needs pixels; set images to pixels, or lock_image")
        if self.lock_image and not self.pretrained_image:
            raise ConfigError(
                "lock_image: a tower of fresh weights has to learn; switch it off, or pretrained_image on"
            )

    def _check_method(self) -> None:
        if self.method in ("lit", "clip") and (self.long_texts or self.corner_tokens):
            raise ConfigError(
                f"method: {self.method} knows no long texts; set long_texts and corner_tokens to 0, or use lit_long"
            )
        if self.method not in ("lit", "clip") and not self.long_texts:
            raise ConfigError(f"long_texts: {self.method} needs at least 1; without long texts it is method lit")
        if self.method in ("lit_long", "lit_longclip") and self.corner_tokens:
            raise ConfigError(f"method: {self.method} has no corner tokens; set corner_tokens to 0, or use lotlip")
        if self.method == "register" and (self.corner_mask or self.corner_loss):
            raise ConfigError("method: register tokens have neither mask nor loss; switch both off, or use lotlip")
        if self.corner_mask and not self.corner_loss:
            raise ConfigError("corner_loss: off with corner_mask on, corners do nothing; switch both off, or neither")

    def _check_scores(self) -> None:
        if self.text_temperature != 1 and self.text_weights != "score":
            raise ConfigError("text_temperature: does nothing without text_weights: score; set both, or neither")
        if self.uses_scores and not (self.long_texts and self.sub_captions):
            raise ConfigError(
                "text_weights, best_sub_captions: choose among long texts, and this training has none; remove them, or "
                "set long_texts and sub_captions to at least 1"
            )

    @property
    def uses_scores(self) -> bool:
        """Whether the choice of texts depends on the scores in the dataset."""
        return self.text_weights == "score" or self.best_sub_captions is not None

    @property
    def image_side(self) -> str:
        """The name of the image tower; that of a whole CLIP begins with `clip:` or `open_clip:`."""
        if not self.start_from:
            return self.image_tower
        return self.start_from if self.start_from.startswith("open_clip:") else f"clip:{self.start_from}"

    def long_texts_of(self, captioners: int) -> int:
        """T, the number of long texts per sample, for this number of captioners; 0 if S, sub_captions, is 0."""
        if not self.sub_captions:
            return 0
        return captioners if self.long_texts == "all" else self.long_texts

    def steps(self, samples: int) -> int:
        """The number of steps of all epochs. Global batches are full: the rest of an epoch goes into the next one.

        Raises:
            ConfigError: There is no step, or the warm-up takes all of them.
        """
        steps = int(self.epochs * samples) // self.batch
        if steps == 0:
            raise ConfigError(
                f"batch: {self.batch} is more than {self.epochs:g} epochs of {count(samples, 'sample')} give. "
                f"{self._advice(samples)}"
            )
        if steps <= self.warm_up:
            raise ConfigError(
                f"warm_up: {self.warm_up} is not fewer than the {count(steps, 'step')} of {self.epochs:g} epochs of "
                f"{count(samples, 'sample')} in batches of {self.batch}. {self._advice(samples)}"
            )
        return steps

    def _advice(self, samples: int) -> str:
        """Settings that work for this number of samples: steps enough to learn, and a tenth of them for the warm-up."""
        batch = max(2, min(self.batch, samples, 2 ** int(math.log2(max(2, self.epochs * samples / SMALL_STEPS)))))
        steps = int(self.epochs * samples) // batch
        if not steps:
            return "Download and caption more images, or raise epochs."
        settings = {"batch": batch, "warm_up": min(self.warm_up, steps // 10)}
        options = " ".join(f"--set {name}={value}" for name, value in settings.items())
        entry = ", ".join(f"{name}: {value}" for name, value in settings.items())
        return (
            f"For so few samples, run `lotlip-data train RUN --method {self.method} {options}`, with `--preset` and "
            f"the other options as before, or write `{entry}` in the manifest's training."
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings in JSON types, without those of LATER_SETTINGS that are at their default."""
        defaults = type(self).model_fields
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name not in LATER_SETTINGS or value != defaults[name].default
        }


def make_config(method: str = "lotlip", preset: str | None = None, **settings: Any) -> TrainConfig:
    """The configuration of a method, with a preset if given; `settings` override both. Raises ConfigError."""
    for name, value, known in (("method", method, METHODS), ("preset", preset, PRESETS)):
        if value is not None and value not in tuple(known):  # a value of YAML may be a list, which no dictionary takes
            raise ConfigError(f"`{name}`: {unknown_name(value, known)}")
    merged = {**PRESETS.get(preset or "", {}), **METHODS[method], "method": method}
    if settings.get("start_from"):  # instead of a preset's towers
        merged = {name: value for name, value in merged.items() if name not in ("image_tower", "text_tower")}
    merged |= settings
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, TrainConfig)) from None
