"""Training: LoTLIP and what it is compared with, from a run's dataset. Read `Trainer.step` first.

A locked image tower's features are computed once for each image, and a step then runs the text tower alone.
"""

import contextlib
import json
import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training import distributed
from lotlip_data.training.checkpointing import CheckpointManager
from lotlip_data.training.config import FREE, ConfigError, TrainConfig
from lotlip_data.training.data import dataset as data
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.data.loader import Batch, prefetch_batches
from lotlip_data.training.data.pixel_reader import PixelReader
from lotlip_data.training.distributed import ALONE, ProcessGroup, first_decides
from lotlip_data.training.metrics import DivergenceMonitor, Metrics, TrainingDiverged, memory_gib, metrics_of
from lotlip_data.training.models.lotlip import load_model
from lotlip_data.training.models.towers import TwoTowers
from lotlip_data.training.objective import Objective
from lotlip_data.training.signals import StopSignal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished training. `did_something` is False where it had been finished before."""

    model: str
    steps: int
    loss: float
    seconds: float
    did_something: bool = True


def train(config: TrainConfig, run: str, out: str, *, resume: bool = True) -> TrainResult:
    """Train on the dataset of the run `run` (path or URL) and leave the model in `out`/model.

    A training that was interrupted goes on from its last checkpoint, and ends bit for bit as if it had not been (on
    CPUs, with as many processes and threads); one that is finished is left alone. With `resume` off, `out` must be
    new. Under torchrun or Ray Train every process calls this, with the same arguments. Ctrl-C or SIGTERM ends the step
    under way, leaves a checkpoint of it, and then does what it does elsewhere; not where this is called outside the
    main thread, as Ray Train does.

    Raises UserError where the dataset, a tower or a setting is not usable, or `out` holds a training of other settings.
    """
    with distributed.process_group() as of:
        level = logging.INFO if of.is_first else logging.DEBUG
        out = storage.normalise(out)
        dataset, finished = first_decides(lambda: _open(config, run, out, resume), of)
        if finished:
            logger.log(level, f"{out}: trained already ({finished.steps} steps); nothing to do")
            return finished
        trainer = Trainer(config, dataset, out, of)
        first_decides(lambda: _claim(out, config, dataset), of)  # not before the settings have proved usable
        try:
            result = trainer.run()
            first_decides(lambda: _finish(config, out, result), of)
        except Exception as error:
            if trainer.stop.asked is not None:
                logger.log(level, f"{type(error).__name__}: {error}")  # what ends this is the signal
            raise
        finally:
            trainer.stop.heed()  # what came in the last step, or before an error
        return result


def _open(config: TrainConfig, run: str, out: str, resume: bool) -> tuple[data.Dataset, TrainResult | None]:
    """The dataset, and the result where the training is finished."""
    if not resume:
        require_new(out)
    dataset = data.open_dataset(run)
    if storage.exists(_config(out)):
        _claim(out, config, dataset)
    if not storage.exists(_done(out)):
        return dataset, None
    return dataset, replace(result_of(out), did_something=False)


def result_of(out: str) -> TrainResult:
    """The result of the finished training in `out`."""
    return TrainResult(**json.loads(storage.read_bytes(_done(out))))


def require_new(out: str) -> None:
    """Raises UserError where there is anything in `out`."""
    if storage.list_names(out):
        raise UserError(
            f"{out}: there is a training already. Give this one another name, or remove that folder to train anew; "
            "to go on with it, use its settings and no --no-resume."
        )


def _finish(config: TrainConfig, out: str, result: TrainResult) -> None:
    content = {name: value for name, value in asdict(result).items() if name != "did_something"}
    storage.create(_done(out), json.dumps(content, indent=1).encode())
    CheckpointManager(out, config.keep_checkpoints).remove_all()


def _config(out: str) -> str:
    return storage.join(out, "config.json")


def _done(out: str) -> str:
    return storage.join(out, "done.json")


class Trainer:
    """One process of a training under way: the towers, the optimiser, and where in the data it stands."""

    def __init__(self, config: TrainConfig, dataset: data.Dataset, out: str, of: ProcessGroup = ALONE) -> None:
        self.config, self.dataset, self.out, self.of = config, dataset, out, of
        self.steps = config.steps(dataset.samples)
        torch.manual_seed(config.seed)
        self.model = load_model(config)
        self.towers = self.model.towers.to(distributed.device())
        self.towers.lock(image=config.lock_image, text=False)
        self.towers.eval()
        distributed.same_everywhere(list(self.towers.state_dict().values()), of)
        self._save_memory_and_time()
        self.captioners = data.captioners_of(dataset, config.captioners)
        self.long_texts = config.long_texts_of(len(self.captioners))
        self.objective = Objective(config, self.towers, self.long_texts, of)
        self.optimiser = _optimizer(config, self.towers)
        self.checkpoints = CheckpointManager(out, config.keep_checkpoints)
        terms = 1 + self.long_texts * (1 + (config.corner_tokens if config.corner_loss else 0))
        self.stop = StopSignal()
        self._all_stop = False
        self.health = DivergenceMonitor(config.batch, terms if config.reduction == "sum" else 1)
        self.read_in_lanes(of.size)

    def _log(self, message: str) -> None:
        """Logs in the first process at INFO, and in the others, which have the same to say, at DEBUG."""
        logger.log(logging.INFO if self.of.is_first else logging.DEBUG, message)

    def _save_memory_and_time(self) -> None:
        if self.config.activation_checkpointing:
            self.towers.text.encoder.gradient_checkpointing_enable({"use_reentrant": False})
            if not self.config.lock_image:
                self.towers.image.vit.gradient_checkpointing_enable({"use_reentrant": False})
        if self.config.compile:
            self.towers.text.compile(dynamic=True)
            self.towers.image.compile()

    def read_in_lanes(self, lanes: int) -> None:
        """Take the data in so many lanes, a multiple of the processes: what a step shows follows from their number."""
        config, dataset = self.config, self.dataset
        if config.batch % lanes or lanes > dataset.samples:
            raise ConfigError(f"batch: {config.batch} cannot be shared by {lanes} processes; make it a multiple")
        self.lanes = lanes
        each = lanes // self.of.size
        mine = range(self.of.rank * each, (self.of.rank + 1) * each)
        picker = data.TextPicker(self.captioners, self.long_texts, config.sub_captions, dataset.sub_captions)
        self.batches = data.Batches(dataset, picker, config.batch, config.seed, lanes=mine, of=lanes)
        open_shards = data.open_shards_of(mine)
        self.images: FeatureCache | PixelReader
        if config.images == "features":
            self.images = FeatureCache(dataset, self.towers.image, self.model.transform, open_shards)
        else:
            self.images = PixelReader(
                dataset,
                self.model.transform,
                seed=config.seed,
                crop=config.crop_scale,
                open_shards=open_shards,
                threads=config.decoders,
            )

    def run(self) -> TrainResult:
        """Every step that is left, then the model's folder. Raises KeyboardInterrupt, or ends, where told to stop."""
        began = time.monotonic()
        first = self._resume()
        if isinstance(self.images, FeatureCache):
            self.images.fill(self.of)
        metrics = Metrics(self.out, first) if self.of.is_first else None
        hidden = None if self.of.is_first else True  # None: shown on a terminal alone
        bar = tqdm(total=self.steps, initial=first, unit=" steps", disable=hidden, leave=False, dynamic_ncols=True)
        resumed = time.monotonic()
        values: dict[str, float] = {}
        started = time.monotonic()
        closing = contextlib.closing
        with self.stop, closing(metrics) if metrics else contextlib.nullcontext(), closing(bar):
            for step, batch in enumerate(prefetch_batches(self.batch, first, self.steps), first):
                values = self.step(step, batch)
                seconds, started = time.monotonic() - started, time.monotonic()
                values["samples_per_second"] = self.config.batch / seconds
                values["tokens_per_second"] = values["tokens"] / seconds
                due = self._is_due(step + 1)
                if metrics:
                    metrics.add(step + 1, **values)
                    if due or metrics.is_due():
                        metrics.flush()  # before the checkpoint: resuming from it finds the lines of all its steps
                    if due:
                        self.checkpoints.save(step + 1, self._state())
                bar.update()
                bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)
                self._report(step, values, (time.monotonic() - resumed) / (step + 1 - first))
                if self._all_stop:
                    first_decides(lambda: None, self.of)  # nobody ends before the first one's checkpoint is written
                    break
        if step + 1 < self.steps:
            self._end_early()
        model = storage.join(self.out, "model")
        if self.of.is_first:
            self.model.save(model)
        return TrainResult(model, self.steps, values["loss"], time.monotonic() - began)

    def _is_due(self, done: int) -> bool:
        """Whether a checkpoint is to be kept of so many steps: the last one's is the model itself."""
        wanted = self._all_stop or done % self.config.checkpoint_every == 0
        return wanted and done < self.steps and self.health.is_sound

    def _end_early(self) -> None:
        """As the signal would have ended it that this process, or another one, was sent."""
        kept = self.checkpoints.steps()
        told = f"stopped; the same command goes on after step {kept[-1] if kept else 0} of {self.steps}"
        self._log(told)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: the same, with what has been told
            self.stop.heed()
        raise KeyboardInterrupt(told)

    def batch(self, step: int) -> Batch:
        """This process's part of global batch number `step`."""
        places = self.batches.places(step)
        texts = self.batches.texts(places)
        every = [text.raw for text in texts] + [one for text in texts for one in text.long]
        images = self.images.rows(places)
        images = images.pin_memory() if torch.cuda.is_available() else images
        return Batch(images, self.model.tokenizer.encode(every).ids)

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One step of the optimiser. Returns what the log keeps of it."""
        _seed(self.config.seed, step, self.of.rank)  # dropout follows from the step: no state of it to save
        rate = learning_rate(step, self.steps, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.towers.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss, embedded = self.objective(batch)
        loss.total.backward()
        stop = float(self.stop.asked is not None)
        told = torch.tensor(
            [loss.total.item(), loss.short.item(), loss.long.item(), embedded.real, embedded.computed, stop],
            device=self.towers.log_scale.device,
            dtype=torch.float64,
        )
        total, short, long, real, computed, stops = distributed.sum_over(told, self.of).tolist()
        self._all_stop = stops > 0  # in the same step, whichever process was told
        norm = self._update(step, total)
        return {
            "loss": total,
            "short": short,
            "long": long,
            "scale": self.towers.scale.item(),
            "gradient": norm,
            "lr": rate,
            "tokens": real,
            "padding": 1 - real / computed,
            "memory_gib": memory_gib(),
        }

    def _update(self, step: int, loss: float) -> float:
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        distributed.sum_gradients(parameters, self.of)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_gradient).item()
        try:
            self.health.check(loss, norm, ((name, one.grad) for name, one in self.towers.named_parameters()))
        except TrainingDiverged as seen:
            kept = self.checkpoints.steps()
            raise TrainingDiverged(
                f"step {step + 1}: {seen}. The last checkpoint is {f'of step {kept[-1]}' if kept else 'none'}. Lower "
                f"lr ({self.config.lr}) or raise warm_up ({self.config.warm_up}), and train under another name."
            ) from None
        self.optimiser.step()
        self.towers.clamp_scale()
        return norm

    def _state(self) -> dict[str, Any]:
        weights = self.towers.state_dict()
        if self.config.lock_image:
            weights = {name: value for name, value in weights.items() if not name.startswith("image.")}
        return {"weights": weights, "optimiser": self.optimiser.state_dict(), "lanes": self.lanes}

    def _resume(self) -> int:
        """Load the last whole checkpoint, and return how many steps are done."""
        found = self.checkpoints.load_last() if self.of.is_first else None
        step = first_decides(lambda: found[0] if found else 0, self.of)
        if not step:
            if self.of.is_first and storage.exists(metrics_of(self.out)):
                self._log("stopped before its first checkpoint: starting again at step 1")
            return 0
        state = found[1] if found else self.checkpoints.load(step)
        self.towers.load_state_dict(state["weights"], strict=not self.config.lock_image)
        self.optimiser.load_state_dict(state["optimiser"])
        if state["lanes"] % self.of.size:
            self._log(
                f"{self.of.size} processes in place of {state['lanes']}: from here on in another order of samples"
            )
        elif state["lanes"] != self.lanes:
            self.read_in_lanes(state["lanes"])
        self._log(f"going on after step {step} of {self.steps}")
        return step

    def _report(self, step: int, values: dict[str, float], seconds: float) -> None:
        if (step + 1) % max(1, self.steps // 20) == 0 or step + 1 == self.steps:
            left = str(timedelta(seconds=round(seconds * (self.steps - step - 1))))
            self._log(
                f"{self.config.method} step {step + 1}/{self.steps}: loss {values['loss']:.3f} "
                f"(short {values['short']:.3f}, long {values['long']:.3f}), "
                f"{self.config.batch / seconds:.0f} samples/s, {left} to go"
            )


def _seed(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `config.lr`, then a cosine to 0 at the last step."""
    if step < config.warm_up:
        return config.lr * (step + 1) / config.warm_up
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warm_up) / (steps - config.warm_up)))


def _optimizer(config: TrainConfig, towers: TwoTowers) -> torch.optim.AdamW:
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
    url = _config(out)
    ours = {**config.to_dict(), "dataset": [shard.sha256 for shard in dataset.shards]}
    if not storage.exists(url) and storage.create(url, json.dumps(ours, indent=1).encode()):
        return  # looked at first: a finished training may lie where nothing can be written
    held = json.loads(storage.read_bytes(url))
    if different := [name for name in {**held, **ours} if name not in FREE and held.get(name) != ours.get(name)]:
        said = "; ".join(
            f"{name} {held.get(name)} there, {ours.get(name)} now" for name in different if name != "dataset"
        )
        said = said or "it has other shards"
        raise ConfigError(f"{out} holds a training on other settings: {said}. Choose another name, or remove it.")
