"""Captions with transformers: micro-batches of `generate` on a worker thread. It runs wherever torch runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
import transformers
from PIL import Image

from lotlip_data.captioners.base import (
    Capacity,
    Caption,
    CaptionerConfig,
    CaptionError,
    EngineOptions,
    ModelSpec,
    TextRequest,
)
from lotlip_data.captioners.engines.batcher import Batcher
from lotlip_data.captioners.engines.devices import current_gpu, defaults_of, device_name
from lotlip_data.captioners.engines.mixed_batches import (
    SharedVision,
    distinct_images,
    padded,
    parts_by_image,
    rows_by,
)
from lotlip_data.captioners.engines.preprocessing import PreparedText, Preprocessor
from lotlip_data.captioners.sizing import language_dtype, resolve_dtype


class BatchInput(Protocol):
    """What a batch needs to know of its inputs."""

    @property
    def config(self) -> CaptionerConfig:
        """The text that is asked for."""

    @property
    def image_id(self) -> str:
        """What the texts of one image have in common, and no other image's."""


Prepared = TypeVar("Prepared", bound=BatchInput)


class BatchingEngine(Generic[Prepared]):
    """An engine whose model generates in batches on a thread of its own.

    A batch has all texts of `batch_size` images. The model reads the images once, then makes one text of all of them
    after the other: so its calls are as large as those of a captioner with one text.
    """

    def _start(self, model: Any, config: CaptionerConfig, batch_size: int, blank: Callable[[], Prepared]) -> None:
        """Take texts from now on.

        Args:
            model: The loaded model.
            config: The captioner.
            batch_size: Largest number of images in a batch.
            blank: Returns the input for a blank image.
        """
        self._model, self._batch_size = model, batch_size
        texts = batch_size * len(config.texts)
        self._batcher = Batcher(self._generate, texts, blank)
        self.window = 2 * texts  # so that the next batch is ready when one ends
        self.burst = 1
        self.capacity = Capacity(str(model.dtype).removeprefix("torch."), device_name(), batch_size)

    async def caption(self, prepared: Prepared | CaptionError) -> Caption:
        if isinstance(prepared, CaptionError):
            raise prepared
        return await self._batcher(prepared)

    def close(self) -> None:
        self._batcher.close()
        self._model = None

    @torch.inference_mode()
    def _generate(self, batch: list[Prepared]) -> list[Caption]:
        captions: list[Caption] = []
        for numbers in parts_by_image([text.image_id for text in batch], self._batch_size):
            captions += self._generate_part([batch[number] for number in numbers])
        return captions

    def _generate_part(self, batch: list[Prepared]) -> list[Caption]:
        """Caption the texts of at most `batch_size` images."""
        raise NotImplementedError


class TransformersEngine(BatchingEngine[PreparedText]):
    """Greedy float32 captions do not depend on which images and prompts share a batch; sampled captions do."""

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, options: EngineOptions):
        self._preprocessor = Preprocessor(captioner, config)
        model = load_model(captioner.model_class, self._preprocessor, config)
        self._vision = SharedVision(model)
        self.special_texts = self._preprocessor.special_texts
        torch.manual_seed(config.seed)
        batch_size = options.batch_size or defaults_of(config, options, self._preprocessor).batch_size
        self._start(model, config, batch_size, self._preprocessor.blank_text)

    def prepare(self, image: Image.Image) -> PreparedText:
        return self._preprocessor.prepare(image, self._preprocessor.positions)

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[PreparedText | CaptionError]:
        return self._preprocessor.prepare_texts(image, requests, self._preprocessor.positions)

    def _generate_part(self, batch: list[PreparedText]) -> list[Caption]:
        images, numbers = distinct_images(batch)
        captions: dict[int, Caption] = {}
        with self._vision.images(torch.cat(images).to(self._model.device, self._model.dtype)) as shared:
            for rows in rows_by(text.config.id for text in batch):
                shared.rows = [numbers[row] for row in rows]
                captions |= zip(rows, self._generate_rows([batch[row] for row in rows]), strict=True)
        return [captions[row] for row in range(len(batch))]

    def _generate_rows(self, batch: list[PreparedText]) -> list[Caption]:
        """Make one text of several images."""
        device, dtype, config = self._model.device, self._model.dtype, batch[0].config
        prompts = {name: rows.to(device) for name, rows in padded([text.prompt.inputs for text in batch]).items()}
        settings = generation_config(config, self._preprocessor.stop_ids)
        processors = transformers.LogitsProcessorList()
        skipped = prompts["input_ids"].shape[1]  # tokens of the output that are not generated
        if hasattr(self._model, "language_model"):  # InstructBLIP's generate delegates to its language model's
            skipped = self._set_up_language_model(settings, processors, skipped)
        self._model.generation_config = settings
        pixels = torch.cat([text.pixels for text in batch]).to(device, dtype)
        tokens = self._model.generate(pixel_values=pixels, logits_processor=processors, **prompts)
        return [self._preprocessor.decode(row, config) for row in tokens[:, skipped:].tolist()]

    def _set_up_language_model(
        self, settings: transformers.GenerationConfig, processors: transformers.LogitsProcessorList, prompt_length: int
    ) -> int:
        """Let InstructBLIP's language model generate as vLLM does.

        A language model with an encoder starts from a token of its own and repeats nothing of the prompt. Any other one
        penalizes repetitions of generated tokens only, since vLLM reads embeddings instead of the prompt's tokens.

        Returns:
            The number of tokens of its output that are not generated.
        """
        language_model, penalty = self._model.language_model, settings.repetition_penalty
        language_model.generation_config = settings
        text = language_model.config
        if text.is_encoder_decoder:
            start = text.decoder_start_token_id
            settings.decoder_start_token_id = text.bos_token_id if start is None else start
            return 1
        if penalty not in (None, 1):
            settings.repetition_penalty = None
            processors.append(
                transformers.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_length)
            )
        return prompt_length


class Checkpoint(Protocol):
    """A checkpoint: its local folder or hub id, keyword arguments for `from_pretrained`, and its config.json."""

    source: str
    load_options: dict[str, Any]
    model_config: Any


def load_model(model_class: str, checkpoint: Checkpoint, config: CaptionerConfig, model_config: Any = None) -> Any:
    """Load a checkpoint in evaluation mode, on the GPU if there is one.

    Args:
        model_class: Name of the transformers class.
        checkpoint: Where the checkpoint is, and how it is loaded.
        config: Names the dtype of all weights; `auto` is the language model's on a GPU and float32 without one.
        model_config: Replaces the checkpoint's config.json.

    Raises:
        ValueError: The checkpoint lacks weights; transformers would initialise them at random and continue.
    """
    gpu = current_gpu()
    dtype = resolve_dtype(config.dtype, language_dtype(checkpoint.model_config), gpu)
    with _quiet():
        model, loading_info = getattr(transformers, model_class).from_pretrained(
            checkpoint.source,
            config=model_config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, with their names
            **checkpoint.load_options,
        )
    if missing := sorted(loading_info["missing_keys"]):
        raise ValueError(f"{checkpoint.source}: lacks {len(missing)} weights of {model_class}, such as {missing[0]}")
    if mismatched := sorted(loading_info["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise ValueError(
            f"{checkpoint.source}: {len(mismatched)} weights do not have the shapes of config.json, such as {name}: "
            f"{tuple(stored)} instead of {tuple(expected)}; use config.json and weights of one model"
        )
    return model.eval().to("cuda" if gpu else "cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bar and its table of weights that a model does not use on purpose."""
    had_progress_bar, verbosity = transformers.logging.is_progress_bar_enabled(), transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_progress_bar:
            transformers.logging.enable_progress_bar()


def generation_config(config: CaptionerConfig, stop_ids: frozenset[int]) -> transformers.GenerationConfig:
    """Return the generation config of the captioner's settings alone.

    The checkpoint's own must not override them: Vicuna's, for example, turns sampling on.
    """
    sampling: dict[str, Any] = {}
    if config.temperature:
        sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        sampling |= {"min_p": config.min_p} if config.min_p else {}
    if config.min_new_tokens:
        sampling["min_new_tokens"] = config.min_new_tokens
    if config.repetition_penalty != 1:
        sampling["repetition_penalty"] = float(config.repetition_penalty)
    return transformers.GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        eos_token_id=sorted(stop_ids),
        pad_token_id=min(stop_ids),  # rows are cut at their end token, so the padding is never read
        **sampling,
    )
