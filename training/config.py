"""Settings of a training: the paper's where it gives them, ours where nobody published any."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError, model_validator

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import describe_errors, unknown_name
from lotlip_data.manifests.settings.training import TrainingSettings
from lotlip_data.manifests.wording import count

_SCRATCH = {"lock_image": False, "pretrained_image": False, "pretrained_text": False, "images": "pixels"}

_LONGCLIP = {
    "corner_tokens": 0,
    "long_texts": 1,
    "sub_captions": "all",
    "short_text": "first_sub_caption",
    "short_image": "principal_components",
    "label_smoothing": 0.1,
    "lock_image": False,
    "images": "pixels",
}
_FROM_CLIP = {"start_from": "openai/clip-vit-base-patch16", "stretch": "longclip", "context_length": 248}
_LONGCLIP_OPTIMIZATION = {"lr": 1e-6, "weight_decay": 0.01, "warm_up": 200, "betas": (0.9, 0.999), "eps": 1e-8}

METHODS: dict[str, dict[str, Any]] = {
    "lit": {"long_texts": 0, "corner_tokens": 0},
    "lit_long": {"corner_tokens": 0},
    "lit_longclip": {"corner_tokens": 0, "short_image": "principal_components"},
    "register": {"corner_mask": False, "corner_loss": False},
    "lotlip": {},
    "clip": {"long_texts": 0, "corner_tokens": 0, **_SCRATCH},
    "lotlip_scratch": _SCRATCH,
    "longclip": _LONGCLIP,
    "debias": _LONGCLIP | {"short_text": "debiased", "short_weight": 0.1, "prefix_padding": True},
    "multi_positive": {
        "corner_tokens": 0,
        "long_texts": 7,  # and the short text: K = 8, as its training on CC3M
        "short_text": "sampled",
        "sub_caption_choice": "diverse",
        "loss": "sigmoid",
        "reduction": "mean",
        **_SCRATCH,
    },
}
"""The settings in which a method differs from LoTLIP (paper, Tables 2, 7 and 8).

`lit_longclip` matches raw texts to the principal components of the image features, as Long-CLIP does. `clip` and
`lotlip_scratch` train both towers from scratch. The variants of LoTLIP in the paper are settings of `lotlip`:
`corner_tokens` 0…4, `corner_mask` off, `sub_captions` 0…8, `context_length` 32…512, `captioners`.

Methods of other papers:

- `longclip`: Long-CLIP (arXiv 2403.15378), from its code (beichenzbc/Long-CLIP at 3966af9, `model/model_longclip.py`,
  `train/sharegpt4v.py`). It takes the components within a GPU's batch; ours are those of the global batch.
- `debias`: DeBias-CLIP (arXiv 2602.22419). Its code was out of reach: the rules and λ = 0.1 are from summaries of the
  paper, and label smoothing is Long-CLIP's, on which it builds.
- `multi_positive`: the multi-positive sigmoid loss and the sampling of FLAIR (arXiv 2412.03561; ExplainableML/flair at
  0f9ce05), without its text-conditioned pooling and the loss on it."""

PUBLISHED: dict[str, dict[str, Any]] = {
    # The table of recommended settings in train/train.md of Long-CLIP's code.
    "longclip": _FROM_CLIP | _LONGCLIP_OPTIMIZATION | {"epochs": 6, "batch": 2048},
    # Epochs and batch are DeBias-CLIP's. The others were out of reach: Long-CLIP's.
    "debias": _FROM_CLIP | _LONGCLIP_OPTIMIZATION | {"epochs": 3, "batch": 256},
    # train_cc3m_slurm.sh of FLAIR's code: 8 GPUs with 128 samples each.
    "multi_positive": {"epochs": 32, "batch": 1024, "weight_decay": 0.5, "eps": 1e-8},
}
"""The model that a method was published to start from, and its optimization. A preset overrides both. With other towers
in place of the model, its optimization does not apply either: fine-tuning has much smaller rates."""

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

LATER_SETTINGS = (
    "text_weights",
    "text_temperature",
    "best_sub_captions",
    "start_from",
    "stretch",
    "sub_caption_choice",
    "short_text",
    "short_image",
    "components",
    "short_weight",
    "prefix_padding",
    "loss",
    "label_smoothing",
)
"""Settings that trainings of earlier versions do not record. At their defaults they change nothing and are not
recorded, so that such trainings resume."""

_EARLIER_DEFAULTS = {"lit_longclip": {"short_image": "principal_components"}}
"""What a later setting was in the trainings of a method before it was a setting, where that is not its default."""

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


_TOWERS = ("image_tower", "text_tower")
_COMPONENTS = TrainingSettings.model_fields["components"].default
_OWN_TOWERS = tuple(TrainingSettings.model_fields[name].default for name in _TOWERS)


class TrainConfig(TrainingSettings):
    """One training: settings that fit together. `make_config` makes it from a method and a preset."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        self._check_images()
        self._check_method()
        self._check_texts()
        self._check_loss()
        self._check_scores()
        return self

    def _check_images(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale: {low}, {high} are not two shares of an image; such as 0.9, 1.0")
        if self.start_from and not (self.pretrained_image and self.pretrained_text):
            raise ConfigError(
                f"start_from: gives both towers their weights, and this training ({self.method}) starts from fresh "
                "ones; remove start_from, or set pretrained_image and pretrained_text to true"
            )
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

    def _check_texts(self) -> None:
        has_long_texts = bool(self.long_texts and self.sub_captions)
        if self.short_text != "raw" and not has_long_texts:
            raise ConfigError(
                f"short_text: {self.short_text} is made of long texts, and this training has none; set it to raw, or "
                "long_texts and sub_captions to at least 1"
            )
        if self.sub_caption_choice == "diverse" and not (has_long_texts and self.sub_captions != "all"):
            raise ConfigError(
                "sub_caption_choice: diverse draws 1 to S sub-captions; set long_texts and sub_captions to numbers of "
                "at least 1, or sub_caption_choice to consecutive"
            )
        if self.sub_caption_choice == "diverse" and self.short_text in ("first_sub_caption", "debiased"):
            raise ConfigError(
                f"short_text: {self.short_text} is a part of one long text, but with sub_caption_choice: diverse a "
                "text is of several captioners; set short_text to raw or sampled, or sub_caption_choice to consecutive"
            )

    def _check_loss(self) -> None:
        if self.label_smoothing and self.loss != "softmax":
            raise ConfigError(
                "label_smoothing: has no meaning for the sigmoid of a pair; set it to 0, or loss: softmax"
            )
        if self.components != _COMPONENTS and self.short_image != "principal_components":
            raise ConfigError(
                "components: does nothing without short_image: principal_components; set both, or neither"
            )
        if self.short_weight is not None and not (self.long_texts and self.sub_captions):
            raise ConfigError("short_weight: weighs short against long texts, and this training has no long ones")
        if self.short_weight is not None and self.reduction != "sum":
            raise ConfigError("short_weight: weighs the texts in place of reduction: mean; remove one of them")

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
        """The settings in JSON types, without those of LATER_SETTINGS that are what they were before."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name not in LATER_SETTINGS or value != _unrecorded(self.method, name)
        }


def recorded_setting(recorded: Mapping[str, Any], name: str) -> Any:
    """The value of a setting in what `TrainConfig.to_dict` wrote, also of one that it left out."""
    return recorded[name] if name in recorded else _unrecorded(recorded.get("method"), name)


def _unrecorded(method: Any, name: str) -> Any:
    """The value of a setting that a training does not record; None if there is no such setting."""
    field = TrainConfig.model_fields.get(name)
    return _EARLIER_DEFAULTS.get(method, {}).get(name, field and field.default)


def _without(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def make_config(method: str = "lotlip", preset: str | None = None, **settings: Any) -> TrainConfig:
    """The configuration of a method, with a preset if given; `settings` override both.

    Towers of the preset or the settings take the place of the model that a method starts from, and the defaults that of
    its optimization.

    Raises:
        ConfigError: A name is unknown, or settings do not fit together.
    """
    for name, value, known in (("method", method, METHODS), ("preset", preset, PRESETS)):
        if value is not None and value not in tuple(known):  # a value of YAML may be a list, which no dictionary takes
            raise ConfigError(f"`{name}`: {unknown_name(value, known)}")
    published, chosen = PUBLISHED.get(method, {}), PRESETS.get(preset or "", {})
    if settings.get("start_from"):  # instead of a preset's towers
        chosen = _without(chosen, _TOWERS)
    if "start_from" in published and {*chosen, *settings} & {*_TOWERS}:
        published = {}
    merged = {**published, **chosen, **METHODS[method], "method": method, **settings}
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, TrainConfig)) from None
