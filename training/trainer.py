"""Trains LoTLIP and the methods that the paper compares it with on the dataset of a run. Start with `Trainer.step`.

The features of a locked image tower are computed once per image, so that a step runs the text tower alone.

A training's folder has config.json (its settings), metrics.jsonl and tensorboard/, checkpoints/ until it has finished,
then model/ and done.json.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import nn

from lotlip_data.manifests import artifacts, storage, wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.progress import SHOWN_BY_BAR, progress_bar
from lotlip_data.manifests.run_layout import TRAINED_MODEL, TRAINING_DONE
from lotlip_data.training import distributed
from lotlip_data.training.batch_encoder import Batch, BatchEncoder, BatchFeatures
from lotlip_data.training.checkpointing import CheckpointManager
from lotlip_data.training.config import CHANGEABLE_ON_RESUME, ConfigError, TrainConfig, recorded_setting
from lotlip_data.training.data import dataset as data
from lotlip_data.training.data.feature_cache import FeatureCache
from lotlip_data.training.data.loader import prefetch_batches
from lotlip_data.training.data.pixel_reader import PixelReader
from lotlip_data.training.data.text_picker import ScoreUse, TextPicker
from lotlip_data.training.devices import local_device
from lotlip_data.training.distributed import SINGLE_PROCESS, ProcessGroup, run_on_first
from lotlip_data.training.loss import Loss, loss_of_guessing, lotlip_loss, term_factors
from lotlip_data.training.metrics import DivergenceMonitor, Metrics, TrainingDiverged, memory_gib, metrics_url
from lotlip_data.training.models.lotlip import load_model
from lotlip_data.training.models.towers import TwoTowers
from lotlip_data.training.packing import pack_texts
from lotlip_data.training.signals import StopSignal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished training. Its fields but `did_something` are those of done.json."""

    model: str
    """The model's folder."""
    steps: int
    loss: float
    """The loss of the last step."""
    seconds: float
    did_something: bool = True
    """False if the training had finished before this call."""


def train(config: TrainConfig, run: str, out: str, *, resume: bool = True) -> TrainResult:
    """Train on the dataset of a run and write the model to `out`/model.

    An interrupted training resumes from its last checkpoint. On CPUs, with the same numbers of processes and threads,
    it ends with the same bits as an uninterrupted one. A finished training is left alone. Under torchrun or Ray Train
    every process calls this with the same arguments.

    Ctrl-C or SIGTERM finishes the step under way and writes a checkpoint; then the signal takes its usual effect.
    Signals are not deferred outside the main thread, which is where Ray Train calls this.

    Args:
        config: The settings.
        run: The run, as a path or URL.
        out: The training's folder, as a path or URL.
        resume: Off: `out` must be empty or absent.

    Raises:
        UserError: The dataset, a tower or a setting cannot be used, or `out` has a training with other settings.
    """
    with distributed.process_group() as group:
        out = storage.normalise(out)
        resolved = run_on_first(lambda: _resolve_precision(config, out), group)
        dataset, finished = run_on_first(lambda: _open(resolved, run, out, resume), group)
        if finished:
            _log(f"{out}: already trained ({wording.count(finished.steps, 'step')}); nothing to do", group)
            return finished
        trainer = Trainer(resolved, dataset, out, group)
        run_on_first(lambda: _claim_folder(out, resolved, dataset), group)  # only after the settings have proved usable
        try:
            result = trainer.run()
            run_on_first(lambda: _finish(resolved, out, result), group)
        except Exception as error:
            if trainer.stop_signal.received is not None:
                _log(f"{type(error).__name__}: {error}", group)  # the signal, not this error, ends the process
            raise
        finally:
            trainer.stop_signal.reraise()  # a signal of the last step, or before an error
        return result


class Trainer:
    """One process of a training: the towers, the optimizer, and the position in the data."""

    def __init__(
        self, config: TrainConfig, dataset: data.Dataset, out: str, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.config, self.dataset, self.out, self.group = config, dataset, out, group
        self.steps = config.steps(dataset.samples)
        torch.manual_seed(config.seed)
        self.model = load_model(config)
        self.towers = self.model.towers.to(local_device())
        self.towers.lock(image=config.lock_image, text=False)
        self.towers.eval()
        distributed.broadcast_from_first(list(self.towers.state_dict().values()), group)
        self._enable_checkpointing_and_compile()
        self.captioners = data.select_captioners(dataset, config.captioners)
        self.long_texts = config.long_texts_of(len(self.captioners))
        self.encode = BatchEncoder(config, self.towers, self.long_texts, group)
        self.optimizer = make_optimizer(config, self.towers)
        self.checkpoints = CheckpointManager(out, config.keep_checkpoints)
        self.stop_signal = StopSignal()
        self._stopping = False
        self.divergence_monitor = DivergenceMonitor(self._loss_of_guessing())
        self.use_lanes(group.size)

    def _loss_of_guessing(self) -> float:
        config, bias = self.config, self.towers.logit_bias
        long_terms = self.long_texts * (1 + (config.corner_tokens if config.corner_loss else 0))
        short_factor, long_factor = term_factors(long_terms, config.reduction, config.short_weight)
        term = loss_of_guessing(config.batch, None if bias is None else bias.item())
        return (short_factor + long_terms * long_factor) * term

    def _enable_checkpointing_and_compile(self) -> None:
        if self.config.activation_checkpointing:
            self.towers.text.encoder.gradient_checkpointing_enable({"use_reentrant": False})
            if not self.config.lock_image:
                self.towers.image.vit.gradient_checkpointing_enable({"use_reentrant": False})
        if self.config.compile:
            self.towers.text.compile(dynamic=True)
            self.towers.image.compile()

    def use_lanes(self, lanes: int) -> None:
        """Read the data in `lanes` lanes, a multiple of the processes. The order of the samples depends on `lanes`."""
        config, dataset = self.config, self.dataset
        if config.batch % lanes or lanes > dataset.samples:
            raise ConfigError(
                f"batch: {config.batch} cannot be shared by {lanes} processes; use a multiple of {lanes}, and at most "
                f"{dataset.samples} processes, the number of samples"
            )
        self.lanes = lanes
        lanes_per_process = lanes // self.group.size
        own_lanes = range(self.group.rank * lanes_per_process, (self.group.rank + 1) * lanes_per_process)
        scores = None
        if config.uses_scores:
            temperature = config.text_temperature if config.text_weights == "score" else None
            scores = ScoreUse(temperature, config.best_sub_captions)
        picker = TextPicker(
            self.captioners,
            self.long_texts,
            config.sub_captions,
            dataset.sub_captions,
            scores,
            choice=config.sub_caption_choice,
            short_text=config.short_text,
            prefix_padding=config.prefix_padding,
        )
        self.batches = data.Batches(dataset, picker, config.batch, config.seed, lanes=own_lanes, lane_count=lanes)
        open_shards = data.open_shard_count(own_lanes)
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
                threads=config.decoders or distributed.cores_per_process(),
            )

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step on the global batch, of which `batch` has this process's samples.

        Returns:
            The values of this step in metrics.jsonl.
        """
        config, towers = self.config, self.towers
        _seed_generator(config.seed, step, self.group.rank)  # dropout depends on the step: no state of it to save
        rate = learning_rate(step, self.steps, config)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = rate
        towers.train()
        self.optimizer.zero_grad(set_to_none=True)

        # Both towers on this process's samples; the features of all processes.
        features = self.encode(batch)
        # Short loss plus long loss (paper, Eq. 1–6), of this process's rows of the global batch.
        loss = self.loss(features)
        loss.total.backward()

        total, short, long, tokens, computed_tokens = self._sum_over_processes(loss, features)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        distributed.sum_gradients(parameters, self.group)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_gradient).item()
        self._check_divergence(step, total, norm)
        self.optimizer.step()
        towers.clamp_scale()
        return {
            "loss": total,
            "short": short,
            "long": long,
            "scale": towers.scale.item(),
            **({} if towers.logit_bias is None else {"bias": towers.logit_bias.item()}),
            "gradient": norm,
            "lr": rate,
            "tokens": tokens,
            "padding": 1 - tokens / computed_tokens,
            "memory_gib": memory_gib(),
        }

    def loss(self, features: BatchFeatures) -> Loss:
        """The loss of this process's rows. The losses of all processes add up to that of the global batch."""
        return lotlip_loss(
            features.image,
            features.short,
            features.long,
            self.towers.scale,
            self.config.reduction,
            bias=self.towers.logit_bias,
            label_smoothing=self.config.label_smoothing,
            short_weight=self.config.short_weight,
            short_image=features.short_image,
            local_rows=features.local_rows,
        )

    def _sum_over_processes(self, loss: Loss, features: BatchFeatures) -> list[float]:
        """The global batch's total, short and long loss, its text tokens, and the tokens computed for them.

        The same all-reduce carries the stop signal, so all processes stop after the same step.
        """
        stop = float(self.stop_signal.received is not None)
        packed = features.packed
        values = torch.tensor(
            [loss.total.item(), loss.short.item(), loss.long.item(), packed.tokens, packed.computed_tokens, stop],
            device=self.towers.log_scale.device,
            dtype=torch.float64,
        )
        *sums, stops = distributed.all_reduce_sum(values, self.group).tolist()
        self._stopping = stops > 0
        return sums

    def _check_divergence(self, step: int, loss: float, norm: float) -> None:
        gradients = ((name, parameter.grad) for name, parameter in self.towers.named_parameters())
        try:
            self.divergence_monitor.check(loss, norm, gradients)
        except TrainingDiverged as error:
            steps = self.checkpoints.steps()
            last = f"The last checkpoint is that of step {steps[-1]}" if steps else "There is no checkpoint"
            raise TrainingDiverged(
                f"step {step + 1}: {error}. {last}. Lower lr ({self.config.lr}) or raise warm_up "
                f"({self.config.warm_up}), and train under another name."
            ) from None

    def make_batch(self, step: int) -> Batch:
        """This process's samples of the step's global batch."""
        samples = self.batches.samples(step)
        texts = self.batches.texts(samples)
        short_then_long = [text.short for text in texts] + [long for text in texts for long in text.long]
        images = self.images.load(samples)
        images = images.pin_memory() if local_device().type == "cuda" else images
        ids = self.model.tokenizer.encode(short_then_long).ids
        padding = [
            int(text.padding * (self.model.tokenizer.room(text_ids) + 1))
            for text, text_ids in zip(texts, ids, strict=False)  # the short texts come first
        ]
        return Batch(images, pack_texts(self.towers.text, ids, padding))

    def run(self) -> TrainResult:
        """Run the remaining steps and write the model's folder.

        Raises:
            KeyboardInterrupt: A process of the training received a stop signal. SIGTERM ends the process instead.
        """
        started = time.monotonic()
        first = self._resume()
        if isinstance(self.images, FeatureCache):
            self.images.fill(self.group)
        steps_done, loss = self._run_steps(first)
        if steps_done < self.steps:
            self._end_early()
        model = storage.join(self.out, TRAINED_MODEL)
        if self.group.is_first:
            self.model.save(model)
        return TrainResult(model, self.steps, loss, time.monotonic() - started)

    def _run_steps(self, first: int) -> tuple[int, float]:
        """Run the steps from `first` to the last one, or to a stop signal. Returns the steps done and the last loss."""
        metrics = Metrics(self.out, first) if self.group.is_first else None
        bar = progress_bar(self.config.method, self.steps, "step", initial=first, visible=self.group.is_first)
        done, values = first, dict[str, float]()
        loop_started = step_started = time.monotonic()
        with self.stop_signal, contextlib.closing(metrics) if metrics else contextlib.nullcontext(), bar:
            for step, batch in enumerate(prefetch_batches(self.make_batch, first, self.steps), first):
                with self._explain_out_of_memory(step, batch):
                    values = self.step(step, batch)
                done = step + 1
                seconds, step_started = time.monotonic() - step_started, time.monotonic()
                values["samples_per_second"] = self.config.batch / seconds
                values["tokens_per_second"] = values["tokens"] / seconds
                if metrics:
                    self._record(metrics, done, values)
                bar.note(f"loss {values['loss']:.3f}")
                bar.update()
                self._report(step, values, (time.monotonic() - loop_started) / (done - first))
                if self._stopping:
                    run_on_first(lambda: None, self.group)  # a barrier: all wait for the first process's checkpoint
                    break
        return done, values["loss"]

    @contextlib.contextmanager
    def _explain_out_of_memory(self, step: int, batch: Batch) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            accumulate, texts = self.config.accumulate, batch.texts
            raise ConfigError(
                f"step {step + 1}: the GPU's memory is too small for a step of {len(batch.images):,} samples per "
                f"process, with {len(texts):,} texts of {texts.tokens:,} tokens. Set accumulate to {2 * accumulate} "
                f"(it is {accumulate}), which halves the tokens that are in memory at a time, or set "
                f"activation_checkpointing ({str(error).splitlines()[0]})"
            ) from error

    def _record(self, metrics: Metrics, done: int, values: dict[str, float]) -> None:
        """Write the metrics and the checkpoint after `done` steps, if they are due."""
        # The last step needs no checkpoint: its weights are the model.
        is_due = self._stopping or done % self.config.checkpoint_every == 0
        checkpoint_due = is_due and done < self.steps and self.divergence_monitor.is_healthy
        metrics.add(done, **values)
        if checkpoint_due or metrics.is_due():
            metrics.flush()  # before the checkpoint, so that resuming from it finds the lines of all its steps
        if checkpoint_due:
            self.checkpoints.save(done, self._state())

    def _report(self, step: int, values: dict[str, float], seconds: float) -> None:
        if (step + 1) % max(1, self.steps // 20) == 0 or step + 1 == self.steps:
            left = str(timedelta(seconds=round(seconds * (self.steps - step - 1))))
            _log(
                f"{self.config.method} step {step + 1}/{self.steps}: loss {values['loss']:.3f} "
                f"(short {values['short']:.3f}, long {values['long']:.3f}), "
                f"{self.config.batch / seconds:.0f} samples/s, {left} to go",
                self.group,
                extra=SHOWN_BY_BAR,
            )

    def _end_early(self) -> None:
        """End as the signal would have ended this process. Another process may have received it."""
        kept = self.checkpoints.steps()
        message = f"stopped; run the same command to resume after step {kept[-1] if kept else 0} of {self.steps}"
        _log(message, self.group)
        with contextlib.suppress(KeyboardInterrupt):  # raised again below, with the message
            self.stop_signal.reraise()
        raise KeyboardInterrupt(message)

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint. Its keys are part of the file format."""
        weights = self.towers.state_dict()
        if self.config.lock_image:
            weights = {name: value for name, value in weights.items() if not name.startswith("image.")}
        return {"weights": weights, "optimiser": self.optimizer.state_dict(), "lanes": self.lanes}

    def _resume(self) -> int:
        """Load the last complete checkpoint. Returns the number of steps done."""
        checkpoint = self.checkpoints.load_last() if self.group.is_first else None
        step = run_on_first(lambda: checkpoint[0] if checkpoint else 0, self.group)
        if not step:
            if self.group.is_first and storage.exists(metrics_url(self.out)):
                _log("the previous run stopped before its first checkpoint: starting again at step 1", self.group)
            return 0
        state = checkpoint[1] if checkpoint else self.checkpoints.load(step)
        self.towers.load_state_dict(state["weights"], strict=not self.config.lock_image)
        self.optimizer.load_state_dict(state["optimiser"])
        lanes, processes = state["lanes"], self.group.size
        if lanes % processes:
            _log(f"{processes} processes instead of {lanes}: the order of the samples changes from here on", self.group)
        elif lanes != self.lanes:
            self.use_lanes(lanes)
        _log(f"resuming after step {step} of {self.steps}", self.group)
        return step


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `config.lr` in `config.warm_up` steps, then a cosine to 0 at the last of `steps` steps."""
    if step < config.warm_up:
        return config.lr * (step + 1) / config.warm_up
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warm_up) / (steps - config.warm_up)))


def make_optimizer(config: TrainConfig, towers: TwoTowers) -> torch.optim.AdamW:
    """AdamW over all parameters that learn, with weight decay on matrices alone (as open_clip does)."""
    trained = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def _log(message: str, group: ProcessGroup, extra: Mapping[str, Any] | None = None) -> None:
    """Log at INFO on the first process, and at DEBUG on the others, which log the same messages."""
    logger.log(logging.INFO if group.is_first else logging.DEBUG, message, extra=extra)


def _seed_generator(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def require_new(out: str) -> None:
    """Raise UserError if the folder `out` has any file."""
    if storage.list_names(out):
        raise UserError(
            f"{out}: already contains a training. Give this training another name, or delete that folder to start "
            "again; to resume it, use its settings and no --no-resume."
        )


def read_result(out: str) -> TrainResult:
    """The result of the finished training in `out`, which may have been moved since."""
    result = artifacts.read_json(_done_url(out), f"Remove {out} and train again.", TrainResult)
    return replace(result, model=storage.join(out, TRAINED_MODEL))


def _open(config: TrainConfig, run: str, out: str, resume: bool) -> tuple[data.Dataset, TrainResult | None]:
    """The dataset, and the result if the training has finished."""
    if not resume:
        require_new(out)
    dataset = data.open_dataset(run)
    if storage.exists(_config_url(out)):
        _claim_folder(out, config, dataset)
    if not storage.exists(_done_url(out)):
        return dataset, None
    return dataset, replace(read_result(out), did_something=False)


def _resolve_precision(config: TrainConfig, out: str) -> TrainConfig:
    """Replace the precision `auto` by that of the training in `out`, or else by what this device is fast in."""
    if config.precision != "auto":
        return config
    if storage.exists(_config_url(out)):
        recorded = artifacts.read_json(_config_url(out), f"Remove {out} and train again.").get("precision")
    else:
        recorded = None
    has_bf16 = local_device().type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.replace(precision=recorded or ("bf16" if has_bf16 else "float32"))


def _claim_folder(out: str, config: TrainConfig, dataset: data.Dataset) -> None:
    """Write the settings of the training into `out`, once. Raises ConfigError if it has a training with others."""
    url = _config_url(out)
    settings = {**config.to_dict(), "dataset": [shard.sha256 for shard in dataset.shards]}
    # `exists` first: a finished training can be on a disk that is read-only.
    if not storage.exists(url) and storage.create(url, artifacts.encode_json(settings, indent=1)):
        return
    recorded = artifacts.read_json(url, f"Remove {out} and train again.", artifacts.JsonObject)
    different = [
        name
        for name in {**recorded, **settings}
        if name not in CHANGEABLE_ON_RESUME and recorded.get(name) != settings.get(name)
    ]
    if different:
        differences = "; ".join(
            f"{name} {recorded_setting(recorded, name)} there, {recorded_setting(settings, name)} now"
            for name in different
            if name != "dataset"
        )
        raise ConfigError(
            f"{out} already contains a training with different settings: "
            f"{differences or 'its dataset has other shards'}. Use another name or delete it."
        )


def _finish(config: TrainConfig, out: str, result: TrainResult) -> None:
    content = {name: value for name, value in asdict(result).items() if name != "did_something"}
    storage.create(_done_url(out), artifacts.encode_json(content, indent=1))
    CheckpointManager(out, config.keep_checkpoints).remove_all()


def _config_url(out: str) -> str:
    return storage.join(out, "config.json")


def _done_url(out: str) -> str:
    return storage.join(out, TRAINING_DONE)
