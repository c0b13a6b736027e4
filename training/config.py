"""Settings of a training: the paper's where it gives them, ours where nobody published any."""

from typing import Any

from pydantic import ValidationError, model_validator

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import describe_errors, unknown_name
from lotlip_data.manifests.settings.training import TrainingSettings

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
"""What sets the methods apart (paper, Tables 2, 7, 8); all else is the same for all. `lit_longclip` matches raw texts
to the image features' primary components, as Long-CLIP does; `clip` and `lotlip_scratch` train both towers from fresh
weights. Variants of LoTLIP are settings of it:
`corner_tokens` 0…4, `corner_mask` off, `sub_captions` 0…8, `context_length` 32…512, `captioners`."""

FREE = ("accumulate", "activation_checkpointing", "compile", "checkpoint_every", "keep_checkpoints", "decoders")
"""Settings that a training may change when it is resumed: what is computed does not depend on them, but for its last
digits and, with `accumulate`, for what dropout draws."""

PRESETS: dict[str, dict[str, Any]] = {
    # Epochs and batch are the paper's for CC3M and for all five sources. It does not publish those between: they are
    # ours, the same 10 epochs, and batches that grow with the data as the paper's do.
    "3m": {"epochs": 10, "batch": 2560, "weight_decay": 0.5},
    "12m": {"epochs": 10, "batch": 8192},
    "30m": {"epochs": 10, "batch": 16_384},
    "100m": {"epochs": 10, "batch": 16_384, "warm_up": 10_000},
    # About 1,500 rendered scenes, tiny towers, one core a method: see docs/log.md for what was tried.
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


class ConfigError(UserError):
    """A setting that cannot be; the message names it and the fix."""


class TrainConfig(TrainingSettings):
    """One training: settings that fit together. `make_config` makes it from a method and a preset."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        self._check_images()
        self._check_method()
        return self

    def _check_images(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale: {low}, {high} are not two shares of an image; such as 0.9, 1.0")
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

    def long_texts_of(self, captioners: int) -> int:
        """T where so many captioners are used; 0 where S is."""
        if not self.sub_captions:
            return 0
        return captioners if self.long_texts == "all" else self.long_texts

    def steps(self, samples: int) -> int:
        """Steps of `epochs` over so many samples: global batches are always full, the rest goes into the next epoch.

        Raises ConfigError where that is none, or no more than the warm-up.
        """
        steps = int(self.epochs * samples) // self.batch
        if steps == 0:
            raise ConfigError(
                f"batch: {self.batch} is more than {self.epochs} epochs of {samples} samples give; lower it"
            )
        if steps <= self.warm_up:
            raise ConfigError(f"warm_up: {self.warm_up} is not fewer than the training's {steps} steps; lower it")
        return steps

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def make_config(method: str = "lotlip", preset: str | None = None, **settings: Any) -> TrainConfig:
    """The configuration of a method, at a preset if named; `settings` go before both. Raises ConfigError."""
    for name, value, known in (("method", method, METHODS), ("preset", preset, PRESETS)):
        if value is not None and value not in tuple(known):  # a value of YAML may be a list, which no dictionary takes
            raise ConfigError(f"`{name}`: {unknown_name(value, known)}")
    merged = {**PRESETS.get(preset or "", {}), **METHODS[method], "method": method, **settings}
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, TrainConfig)) from None
