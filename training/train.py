"""Training: LoTLIP and what it is compared with, from a run's dataset. Read `Trainer.step` first.

The image tower is locked, so its features are computed once for each image; a step runs the text tower alone.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints import resolve
from lotlip_data.manifests.errors import UserError
from lotlip_data.training import data
from lotlip_data.training.checkpoint import LoTLIP
from lotlip_data.training.config import FREE, ConfigError, TrainConfig
from lotlip_data.training.features import FeatureCache
from lotlip_data.training.images import transform_of
from lotlip_data.training.loss import Loss, lotlip_loss, primary_components
from lotlip_data.training.packing import Embedded, embed
from lotlip_data.training.resume import Checkpoints, Metrics
from lotlip_data.training.text import TextTokenizer, load_tokenizer
from lotlip_data.training.tower_files import load_image_tower, load_text_encoder
from lotlip_data.training.towers import TextSettings, TextTower, TwoTowers

Say = Callable[[str], None]
FLUSH_SECONDS = 10.0


class TrainingDiverged(UserError):
    """The loss is no number any more; the message says at which step, and what to try."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training. `did_something` is False where it had been finished before."""

    model: str
    steps: int
    loss: float
    seconds: float
    did_something: bool = True


def train(config: TrainConfig, run: str, out: str, *, resume: bool = True, say: Say = print) -> TrainResult:
    """Train on the dataset of the run `run` (path or URL) and leave the model in `out`/model.

    A training that was interrupted goes on from its last checkpoint, and ends bit for bit as if it had not been (on a
    CPU, with the same number of threads); one that is finished is left alone. With `resume` off, `out` must be new.

    Raises UserError where the dataset, a tower or a setting is not usable, or `out` holds a training of other settings.
    """
    out = storage.normalise(out)
    if not resume and storage.list_names(out):
        raise UserError(f"{out}: there is a training already; resume it, or choose another name")
    dataset = data.open_dataset(run)
    _claim(out, config, dataset)
    done = storage.join(out, "done.json")
    if storage.exists(done):
        result = TrainResult(**json.loads(storage.read_bytes(done)) | {"did_something": False})
        say(f"{out}: trained already ({result.steps} steps); nothing to do")
        return result
    result = Trainer(config, dataset, out, say).run()
    content = {name: value for name, value in asdict(result).items() if name != "did_something"}
    storage.create(done, json.dumps(content, indent=1).encode())
    Checkpoints(out, config.keep_checkpoints).remove_all()
    return result


class Trainer:
    """One training under way: the towers, the optimiser, and where in the data it stands."""

    def __init__(self, config: TrainConfig, dataset: data.Dataset, out: str, say: Say) -> None:
        self.config, self.out, self.say = config, out, say
        self.steps = config.steps(dataset.samples)
        torch.manual_seed(config.seed)
        self.model = load_model(config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.towers.to(self.device)
        self.model.towers.lock(image=True, text=False)
        self.model.towers.eval()
        self.features = FeatureCache(dataset, self.model.towers.image, self.model.transform)
        if config.activation_checkpointing:
            self.model.towers.text.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            self.model.towers.text.compile(dynamic=True)
        captioners = data.captioners_of(dataset, config.captioners)
        self.long_texts = config.long_texts_of(len(captioners))
        picker = data.TextPicker(captioners, self.long_texts, config.sub_captions, dataset.sub_captions)
        self.batches = data.Batches(dataset, picker, config.batch, config.seed)
        self.optimiser = _optimiser(config, self.model.towers)
        self.checkpoints = Checkpoints(out, config.keep_checkpoints)

    def run(self) -> TrainResult:
        """Every step that is left, then the model's folder."""
        began = time.monotonic()
        self.features.fill(self.say)
        first = self._resume()
        metrics = Metrics(self.out, first)
        flushed = time.monotonic()
        for step in range(first, self.steps):
            started = time.monotonic()
            values = self.step(step)
            values["samples_per_second"] = self.config.batch / (time.monotonic() - started)
            metrics.add(step=step + 1, **values)
            due = (step + 1) % self.config.checkpoint_every == 0 and step + 1 < self.steps
            if due or time.monotonic() - flushed > FLUSH_SECONDS:
                metrics.flush()  # before the checkpoint: resuming from it finds the lines of all its steps
                flushed = time.monotonic()
            if due:
                self.checkpoints.save(step + 1, self._state())
            self._report(step, values)
        metrics.flush()
        model = storage.join(self.out, "model")
        self.model.save(model)
        return TrainResult(model, self.steps, metrics.lines[-1]["loss"], time.monotonic() - began)

    def step(self, step: int) -> dict[str, float]:
        """One step of the optimiser on global batch number `step`. Returns what the log keeps of it."""
        towers, config = self.model.towers, self.config
        torch.manual_seed((config.seed << 32) + step)  # dropout follows from the step, so resuming needs no saved state
        rate = learning_rate(step, self.steps, config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        towers.text.train()
        image = F.normalize(self.features.rows(self.batches.places(step)).to(self.device), dim=-1)
        texts = self.batches.texts(step)
        loss, embedded = self._loss(image, texts)
        norm = self._update(loss.total, step)
        return {
            "loss": loss.total.item(),
            "short": loss.short.item(),
            "long": loss.long.item(),
            "scale": towers.scale.item(),
            "gradient": norm,
            "lr": rate,
            "tokens": embedded.real,
            "padding": 1 - embedded.real / embedded.computed,
        }

    def _loss(self, image: Tensor, texts: list[data.Texts]) -> tuple[Loss, Embedded]:
        """The loss of unit image features [B, D] and their texts."""
        towers, config = self.model.towers, self.config
        encoded = self.model.tokenizer.encode(
            [text.raw for text in texts] + [one for text in texts for one in text.long]
        )
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            embedded = embed(towers.text, encoded.ids, config.accumulate)
        features = F.normalize(embedded.features.float(), dim=-1)
        short, long = features[: len(texts), 0], features[len(texts) :].unflatten(0, (len(texts), self.long_texts))
        if not config.corner_loss:
            long = long[:, :, :1]
        matched = primary_components(image) if config.method == "lit_longclip" else None
        return lotlip_loss(image, short, long, towers.scale, config.reduction, short_image=matched), embedded

    def _update(self, loss: Tensor, step: int) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_gradient).item()
        if not math.isfinite(loss.item()) or not math.isfinite(norm):
            kept = self.checkpoints.steps()
            raise TrainingDiverged(
                f"step {step + 1}: the loss is {loss.item()} and the gradient's norm {norm}. The last checkpoint is "
                f"{f'of step {kept[-1]}' if kept else 'none'}. Lower lr ({self.config.lr}) or raise warm_up "
                f"({self.config.warm_up}), and train under another name."
            )
        self.optimiser.step()
        self.model.towers.clamp_scale()
        return norm

    def _state(self) -> dict[str, Any]:
        towers = self.model.towers
        return {
            "text": towers.text.state_dict(),
            "log_scale": towers.log_scale.detach(),
            "optimiser": self.optimiser.state_dict(),
        }

    def _resume(self) -> int:
        """Load the last whole checkpoint, and return how many steps are done."""
        found = self.checkpoints.load_last(self.say)
        if found is None:
            return 0
        step, state = found
        self.model.towers.text.load_state_dict(state["text"])
        with torch.no_grad():
            self.model.towers.log_scale.copy_(state["log_scale"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.say(f"going on after step {step} of {self.steps}")
        return step

    def _report(self, step: int, values: dict[str, float]) -> None:
        if (step + 1) % max(1, self.steps // 20) == 0 or step + 1 == self.steps:
            self.say(
                f"{self.config.method} step {step + 1}/{self.steps}: loss {values['loss']:.3f} "
                f"(short {values['short']:.3f}, long {values['long']:.3f}), "
                f"{values['samples_per_second']:.0f} samples/s"
            )


def load_model(config: TrainConfig) -> LoTLIP:
    """The model of a configuration before its first step: both towers pre-trained, corners and projection fresh."""
    image_tower, text_tower = resolve(config.image_tower), resolve(config.text_tower)
    image = load_image_tower(image_tower, image_size=config.image_size)
    settings = TextSettings(config.corner_tokens, config.corner_mask)
    text = TextTower(load_text_encoder(text_tower, pretrained=config.pretrained_text), image.dim, settings)
    if config.context_length > text.max_length:
        raise ConfigError(f"context_length: {config.text_tower} has {text.max_length} positions; use at most those")
    tokenizer = TextTokenizer(
        load_tokenizer(text_tower),
        vocab_size=text.vocab_size,
        context_length=config.context_length,
        corner_tokens=config.corner_tokens,
        form=config.text_form,
    )
    return LoTLIP(TwoTowers(image, text), tokenizer, transform_of(image_tower, image.vit.config.image_size))


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `config.lr`, then a cosine to 0 at the last step."""
    if step < config.warm_up:
        return config.lr * (step + 1) / config.warm_up
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warm_up) / (steps - config.warm_up)))


def _optimiser(config: TrainConfig, towers: TwoTowers) -> torch.optim.AdamW:
    trained = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _claim(out: str, config: TrainConfig, dataset: data.Dataset) -> None:
    """Settle, once, what is trained in `out`. Raises ConfigError where that was something else."""
    url = storage.join(out, "config.json")
    ours = {**config.to_dict(), "dataset": [shard.sha256 for shard in dataset.shards]}
    if storage.create(url, json.dumps(ours, indent=1).encode()):
        return
    held = json.loads(storage.read_bytes(url))
    if different := [name for name in {**held, **ours} if name not in FREE and held.get(name) != ours.get(name)]:
        said = "; ".join(
            f"{name} {held.get(name)} there, {ours.get(name)} now" for name in different if name != "dataset"
        )
        said = said or "it has other shards"
        raise ConfigError(f"{out} holds a training on other settings: {said}. Choose another name, or remove it.")
