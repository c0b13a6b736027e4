"""Settings of a training: the paper's where it gives them, ours where nobody published any."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lotlip_data.manifests.errors import UserError

Method = Literal["lit", "lit_long", "lit_longclip", "register", "lotlip", "clip", "lotlip_scratch"]

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

PAPER_TOWER = "timm/vit_base_patch16_224.augreg_in21k"
"""ViT-B/16 at 224 pixels, pre-trained on ImageNet-21k (paper); the timm weights are the authors' code's."""

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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training. Towers are local folders, hub ids, or come with the project."""

    image_tower: str = PAPER_TOWER
    text_tower: str = "google-bert/bert-base-uncased"
    pretrained_text: bool = True
    """Off: the text tower starts from fresh weights of the same configuration."""
    image_size: int | None = None
    """Pixels of a side; the image tower's own by default (the paper's: 224), else its positions are resized."""
    lock_image: bool = True
    """The image tower stays as it is (paper, after LiT); off: it learns too."""
    pretrained_image: bool = True
    """Off: the image tower starts from fresh weights of the same configuration."""
    images: Literal["features", "pixels"] = "features"
    """What an image is to a step: its features, computed once for all steps, or its pixels, cropped anew each time."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Of pixels: the share of the image that a random crop keeps, without a flip (the authors' code)."""
    method: Method = "lotlip"

    corner_tokens: int = 2
    """m; 0 for none (paper: 2)."""
    corner_mask: bool = True
    """The paper's rule in the attention (Sec. 4.3); off: everything sees the corner tokens."""
    corner_loss: bool = True
    """Corner tokens of long texts are matched to the image too (Eq. 5). Off, with the mask off: register tokens."""
    context_length: int = 128
    """Tokens of a text, special ones included (paper: 128)."""
    text_form: Literal["authors", "punkt"] = "authors"
    sub_captions: int = 3
    """S: so many consecutive sub-captions are taken at random from a long text (paper: 3; 0: no long texts, Fig. 2)."""
    long_texts: int | Literal["all"] = 3
    """T: long texts a sample shows per step, of different captioners where there are as many (ours); or one of each."""
    captioners: tuple[str, ...] = ()
    """Whose long texts are used; all of the dataset's where empty (paper, Table 9)."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the loss over texts: the paper's sum, or the authors' code's mean."""

    epochs: float = 10
    batch: int = 2560
    lr: float = 5e-4
    """Peak of AdamW's, reached after `warm_up` steps, then a cosine to 0. Ours, as the next five: open_clip's."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    """On matrices only, as in open_clip."""
    warm_up: int = 2000
    clip_gradient: float = 1.0
    """Largest norm of the gradient."""

    precision: Literal["float32", "bf16"] = "float32"
    """Of the towers' passes, as autocast has it; weights, features, loss and optimiser stay in float32."""
    accumulate: int = 1
    """Pieces in which a process's texts, and images, pass through the towers: the memory of one, the gradient of the
    whole batch, and a third more work."""
    activation_checkpointing: bool = False
    """Keep only what enters a layer, and compute the layer again in the backward pass."""
    compile: bool = False
    """The text tower through torch.compile: a minute or more at the start, for faster steps on a GPU."""

    decoders: int = 4
    """Threads of a process that decode images; of pixels alone."""
    seed: int = 0
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) != "all" and value < least:
                raise ConfigError(f"{name}: {value} is too small; at least {least}")
        for name in ("epochs", "lr", "eps", "clip_gradient"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: {getattr(self, name):g} is not above 0")
        self._check_images()
        self._check_method()

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


_LEAST = {
    "corner_tokens": 0,
    "context_length": 8,
    "sub_captions": 0,
    "long_texts": 0,
    "batch": 2,
    "weight_decay": 0,
    "warm_up": 0,
    "seed": 0,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "accumulate": 1,
    "decoders": 1,
}


def make_config(method: str = "lotlip", preset: str | None = None, **settings: Any) -> TrainConfig:
    """The configuration of a method, at a preset if named; `settings` go before both. Raises ConfigError."""
    if method not in tuple(METHODS):  # a value of YAML may be a list, which no dictionary takes
        raise ConfigError(f"method: no {method!r}; one of {', '.join(METHODS)}")
    if preset is not None and preset not in tuple(PRESETS):
        raise ConfigError(f"preset: no {preset!r}; one of {', '.join(PRESETS)}")
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"{name}: no such setting; " + (f"{close[0]}?" if close else f"one of {', '.join(known)}")
            )
    merged = {**PRESETS.get(preset or "", {}), **METHODS[method], "method": method, **settings}
    try:
        return TypeAdapter(TrainConfig).validate_python(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_explain, error.errors()))) from None


def _explain(problem: Any) -> str:
    if not problem["loc"]:  # one of ours, which names the setting
        return str(problem["ctx"]["error"])
    message: str = problem["msg"].removeprefix("Input ").replace("tuple", "list")
    return f"{problem['loc'][0]}: {problem['input']!r} {message}"
