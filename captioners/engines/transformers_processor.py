"""Texts of any vision-language model with transformers: micro-batches of `generate` on a worker thread."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image

from lotlip_data.captioners.base import (
    Caption,
    CaptionerConfig,
    CaptionError,
    EngineOptions,
    ModelSpec,
    TextRequest,
)
from lotlip_data.captioners.engines.adapters import adapter_folder
from lotlip_data.captioners.engines.devices import defaults_of
from lotlip_data.captioners.engines.mixed_batches import SharedFeatures, rows_by
from lotlip_data.captioners.engines.processor_inputs import Fields, ProcessedText, ProcessorInputs, collate
from lotlip_data.captioners.engines.transformers_engine import BatchingEngine, generation_config, load_model


class ProcessorEngine(BatchingEngine[ProcessedText]):
    """Greedy float32 texts do not depend on which images share a batch; sampled texts do."""

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, options: EngineOptions):
        self._config = config
        self._inputs = ProcessorInputs(captioner, config)
        self.special_texts = self._inputs.special_texts
        check_architecture(config, self._inputs)
        model = load_model(captioner.model_class, self._inputs, config)
        if config.lora:
            _load_adapter(model, config)
        torch.manual_seed(config.seed)
        batch_size = options.batch_size or defaults_of(config, options, self._inputs).batch_size
        self._shared = SharedFeatures(model)
        self._start(model, config, batch_size, self._inputs.blank)

    def prepare(self, image: Image.Image) -> ProcessedText | CaptionError:
        text = self._config.texts[0]
        return self.prepare_texts(image, [TextRequest(text, text.prompt)])[0]

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[ProcessedText | CaptionError]:
        return self._inputs.prepare(image, requests)

    def _generate_part(self, batch: list[ProcessedText]) -> list[Caption]:
        captions: dict[int, Caption] = {}
        with self._shared.of_one_part():
            for rows in rows_by((text.config.id, *text.fields) for text in batch):  # inputs of other names do not mix
                tokens = self._tokens(batch[rows[0]].config, [batch[row].fields for row in rows])
                for row, generated in zip(rows, tokens, strict=True):
                    captions[row] = self._inputs.decode(generated, batch[row].config)
        return [captions[row] for row in range(len(batch))]

    def _tokens(self, config: CaptionerConfig, items: list[Fields]) -> list[list[int]]:
        """Return the generated tokens of each text."""
        inputs = {name: self._on_device(value) for name, value in collate(items, self._inputs.pad_id).items()}
        stopping = transformers.StoppingCriteriaList()
        prompt_length = inputs["input_ids"].shape[1]
        if config.stop:
            stopping.append(_StopStrings(self._inputs, config, prompt_length))
        tokens = self._model.generate(
            **inputs, generation_config=generation_config(config, self._inputs.stop_ids), stopping_criteria=stopping
        )
        return [row[prompt_length:] for row in tokens.tolist()]

    def _on_device(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._on_device(part) for part in value]
        dtype = self._model.dtype if value.is_floating_point() else value.dtype
        return value.to(self._model.device, dtype)


class _StopStrings(transformers.StoppingCriteria):
    """Ends each text at its first stop string."""

    def __init__(self, inputs: ProcessorInputs, config: CaptionerConfig, prompt_length: int):
        self._inputs, self._config, self._prompt_length = inputs, config, prompt_length

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        rows = input_ids[:, self._prompt_length :].tolist()
        ended = [self._inputs.decode(row, self._config).finish_reason == "stop" for row in rows]
        return torch.tensor(ended, device=input_ids.device)


def check_architecture(config: CaptionerConfig, inputs: ProcessorInputs) -> None:
    """Raise ValueError if transformers has no class that reads images and texts for this type of model."""
    known = type(inputs.model_config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto_map = getattr(inputs.model_config, "auto_map", None) or {}
    if not known and not (config.trust_remote_code and "AutoModelForImageTextToText" in auto_map):
        raise ValueError(
            f"captioner {config.name!r}: {config.model}: transformers {transformers.__version__} has no model for "
            f"images and texts of type {inputs.model_config.model_type!r}; use engine='vllm'"
        )


def _load_adapter(model: Any, config: CaptionerConfig) -> None:
    """Add a LoRA adapter to a model. Raises ValueError with the fix if the package for it is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"captioner {config.name!r}: lora: engine='transformers' needs the package peft; pip install peft, or use "
            "engine='vllm'"
        )
    model.load_adapter(adapter_folder(config))
