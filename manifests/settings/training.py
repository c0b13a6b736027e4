"""The manifest's `train` section: the settings of each training. `training.config` defines methods and presets.

train:
  - {method: lotlip, preset: 3m}
  - {name: without-mask, method: lotlip, preset: 3m, corner_mask: false, ray: {workers: 8}}
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from lotlip_data.manifests.settings.base import ListEntry, Settings, SparseSettings

Method = Literal[
    "lit",
    "lit_long",
    "lit_longclip",
    "register",
    "lotlip",
    "clip",
    "lotlip_scratch",
    "longclip",
    "debias",
    "multi_positive",
]
TrainingPreset = Literal["3m", "12m", "30m", "100m", "demo"]

PAPER_TOWER = "timm/vit_base_patch16_224.augreg_in21k"
"""ViT-B/16 at 224 pixels, pre-trained on ImageNet-21k (paper); the timm weights are those of the authors' code."""

Count = Annotated[int, Field(ge=1)]
ShortText = Literal["raw", "first_sub_caption", "debiased", "sampled"]
SubCaptionChoice = Literal["consecutive", "diverse"]


class TrainingSettings(Settings):
    """One training. A tower is a local folder, a hub id, or the short name of one that comes with the project."""

    start_from: str | None = None
    """Image–text model from which both towers start, with their projections, temperature and tokenizer: hub id or
    folder of a CLIP or SigLIP, `open_clip:MODEL/WEIGHTS`, or the `model` folder of another training. Default:
    `image_tower` and `text_tower`."""
    image_tower: str = PAPER_TOWER
    """Image tower."""
    text_tower: str = "google-bert/bert-base-uncased"
    """Text tower."""
    pretrained_text: bool = True
    """Off: the text tower starts from fresh weights of the same configuration."""
    image_size: int | None = None
    """Side of an image in pixels. Default: the image tower's own (paper: 224); its positions are resized for others."""
    lock_image: bool = True
    """The image tower does not learn (paper, after LiT). Off: it learns too."""
    pretrained_image: bool = True
    """Off: the image tower starts from fresh weights of the same configuration."""
    images: Literal["features", "pixels"] = "features"
    """Input of a step: the images' features, computed once for all steps, or their pixels, cropped anew each time."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """With `images: pixels`: range of the share of an image that a random crop keeps; no flip (the authors' code)."""
    method: Method = "lotlip"
    """Method to train: LoTLIP or one that it is compared with."""

    corner_tokens: Annotated[int, Field(ge=0)] = 2
    """m, the number of corner tokens; 0 for none (paper: 2)."""
    corner_mask: bool = True
    """Attention mask of the paper (Sec. 4.3). Off: every token sees the corner tokens."""
    corner_loss: bool = True
    """Corner tokens of long texts are matched to the image too (Eq. 5). Off, with the mask off: register tokens."""
    context_length: Annotated[int, Field(ge=8)] = 128
    """Largest number of tokens of a text, special ones included (paper: 128)."""
    stretch: Literal["longclip", "linear"] | None = None
    """How the text tower's positions become as many as `context_length`: the first 20 are kept and the others
    interpolated (Long-CLIP), or all are interpolated. Default: no text is longer than the tower's positions."""
    text_form: Literal["authors", "punkt"] = "authors"
    """Rule by which a BERT-like tower's tokenizer splits a text into sub-captions: at every ". " as the authors' code,
    or by Punkt."""
    sub_captions: Annotated[int, Field(ge=0)] | Literal["all"] = 3
    """S: number of consecutive sub-captions that are drawn from a long text (paper: 3; 0: no long texts, Fig. 2);
    `all`: the whole text."""
    sub_caption_choice: SubCaptionChoice = "consecutive"
    """Which sub-captions a long text is made of: S consecutive ones of one captioner (paper), or `diverse`: 1 to S of
    the raw text and all captioners' texts, half of the time consecutive ones, else any in random order (FLAIR)."""
    short_text: ShortText = "raw"
    """The short text of a sample: the raw text (paper); the first sub-caption of the first long text (Long-CLIP);
    `debiased`: some of the others in random order (DeBias-CLIP); `sampled`: one more text, drawn as long texts are."""
    short_image: Literal["features", "principal_components"] = "features"
    """What short texts are matched to: the image features (paper), or what their first principal components in the
    batch keep of them (Long-CLIP)."""
    components: Count = 32
    """With `short_image: principal_components`: their number (Long-CLIP: 32). A batch of B images has B − 1, so a
    number near the batch keeps everything."""
    short_weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """λ: the loss is λ × short loss + (1 − λ) × long loss (DeBias-CLIP). Default: their sum (paper)."""
    prefix_padding: bool = False
    """Padding of random length stands before the words of a short text, as much as the context length allows
    (DeBias-CLIP). CLIP sees it; a BERT-like tower does not, so that only the positions of the words change."""
    long_texts: Annotated[int, Field(ge=0)] | Literal["all"] = 3
    """T: number of long texts per sample and step, of different captioners where there are as many (ours); `all`: one
    of each captioner."""
    captioners: tuple[str, ...] = ()
    """Captioners whose long texts are used. Default: all of the dataset's (paper, Table 9)."""
    text_weights: Literal["uniform", "score"] = "uniform"
    """How a sample's long texts and their sub-captions are drawn: all alike (paper), or with weight
    exp(score / `text_temperature`), from the scores in the dataset (ours)."""
    text_temperature: Annotated[float, Field(gt=0)] = 1.0
    """With `text_weights: score`: the lower, the more often texts with high scores are drawn. Combined scores have
    variance 1, about."""
    best_sub_captions: Annotated[int, Field(ge=1)] | None = None
    """Number of sub-captions of a long text that are used: those with the highest scores in the dataset, in the order
    of the text. Default: all."""
    reduction: Literal["sum", "mean"] = "sum"
    """Reduction of the loss over texts: the paper's sum, or the mean of the authors' code."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Loss of an image and a text: softmax over the batch (paper), or SigLIP's sigmoid of each pair, with a bias that
    learns."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With `loss: softmax`: share of the target that is spread evenly over the batch (Long-CLIP: 0.1)."""

    epochs: Annotated[float, Field(gt=0)] = 10
    """Number of passes over the dataset."""
    batch: Annotated[int, Field(ge=2)] = 2560
    """Number of samples per step, over all workers."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of AdamW, reached after `warm_up` steps; a cosine to 0 follows. Ours, like the next five:
    open_clip's."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Betas of AdamW."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Epsilon of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Weight decay, on matrices only, as in open_clip."""
    warm_up: Annotated[int, Field(ge=0)] = 2000
    """Number of steps of linear warm-up."""
    clip_gradient: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of the towers' passes under autocast. Weights, features, loss and optimiser stay in float32. `auto`:
    bf16 on a GPU that has it, float32 elsewhere; a training that resumes keeps the precision that it started with."""
    accumulate: Count = 1
    """Number of pieces in which a worker's texts and images pass through the towers: the memory of one piece, the
    gradient of the whole batch, and a third more computation."""
    activation_checkpointing: bool = False
    """Keep only the inputs of layers, and compute the layers again in the backward pass."""
    compile: bool = False
    """Compile the text tower with torch.compile: at least a minute at the start, faster steps on a GPU."""

    decoders: Count | None = None
    """With `images: pixels`: number of threads per worker that decode images. Default: the machine's cores, shared by
    its workers."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of samples, the choice of texts, crops, dropout and fresh weights."""
    checkpoint_every: Count = 500
    """Number of steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of checkpoints that are kept."""


class Workers(SparseSettings):
    """Workers of a training on a Ray cluster."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Number of processes that train."""
    gpus: Annotated[float, Field(ge=0)] = 1
    """GPUs per worker."""
    cpus: Annotated[float, Field(ge=0)] = 4
    """CPUs per worker."""

    @field_validator("workers", "gpus", "cpus", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is not a number")
        return value


class TrainingEntry(TrainingSettings, ListEntry):
    """One training of a manifest. Settings that are not given are the method's, the preset's or, last, the defaults."""

    name: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    """Name of the training's folder. Default: the method's name."""
    preset: TrainingPreset | None = None
    """The paper's settings at a scale of data, or `demo`, the settings of the demo."""
    ray: Workers | None = None
    """Train on workers of a Ray cluster. Default: in this process."""

    @property
    def folder(self) -> str:
        """The name of the training's folder in `RUN/train`."""
        return self.name or self.method

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the entry gives, `method` and `preset` among them, without `name` and `ray`."""
        return {name: value for name, value in self.explicit.items() if name not in ("name", "ray")}
