"""Texts of any vision-language model with vLLM: its own processor makes the inputs, on the caller's threads.

vLLM's renderer turns an image and a text into the engine's input before the request reaches the engine, so that the
engine never waits for an image. The image processor is the one of `ProcessorInputs`, so that both engines read the same
pixels.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, EngineOptions, ModelSpec, TextRequest
from lotlip_data.captioners.engines.adapters import vllm_arguments
from lotlip_data.captioners.engines.processor_inputs import ProcessorInputs
from lotlip_data.captioners.engines.processor_loading import names_normalization
from lotlip_data.captioners.engines.prompt import no_room
from lotlip_data.captioners.engines.vllm_engine import VllmEngine, engine_args, runs_natively
from lotlip_data.captioners.load_errors import describe, shorten


@dataclass(frozen=True)
class RenderedText:
    """One text that an image is to get, and vLLM's input for it."""

    config: CaptionerConfig
    request: Any


class VllmProcessorEngine(VllmEngine):
    """A model of any family that vLLM runs. All calls of `caption` must come from one event loop."""

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, options: EngineOptions):
        self._config = config
        self._inputs = ProcessorInputs(captioner, config)
        arguments = engine_args(
            config,
            options,
            self._inputs,
            trust_remote_code=config.trust_remote_code,
            mm_processor_kwargs=self._inputs.images_kwargs or None,
            limit_mm_per_prompt={"image": 1, "video": 0},
            **_normalization(self._inputs),
            **vllm_arguments(config),
        )
        try:
            super().__init__(config, self._inputs, arguments)
        except Exception as error:
            if runs_natively(self._inputs.model_config):
                raise
            names = ", ".join(self._inputs.model_config.architectures or ["this architecture"])
            raise ValueError(
                f"captioner {config.name!r}: {config.model}: vLLM has no model of its own for {names}, and "
                f"transformers' does not run in it ({describe(error)}); use engine='transformers'"
            ) from error

    def prepare(self, image: Image.Image) -> RenderedText | CaptionError:
        text = self._config.texts[0]
        return self.prepare_texts(image, [TextRequest(text, text.prompt)])[0]

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[RenderedText | CaptionError]:
        picture, name = self._inputs.picture(image), uuid.uuid4().hex
        with self._inputs.shared_images.of_one_image():
            return [self._render(picture, request, name) for request in requests]

    async def caption(self, prepared: RenderedText | CaptionError) -> Caption:
        if isinstance(prepared, CaptionError):
            raise prepared
        return await self._generate(prepared.request, prepared.config)

    def _prepare_requests(self, config: CaptionerConfig) -> None:
        """Let vLLM's processor use the image processor that both engines share."""
        assert self._llm
        processor: Any = self._llm.renderer.get_mm_processor().info.get_hf_processor()
        processor.image_processor = self._inputs.processor.image_processor

    def _render(self, picture: Image.Image, request: TextRequest, name: str) -> RenderedText | CaptionError:
        """Return vLLM's input for one text of an image, or the reason why there is none.

        Args:
            picture: The image.
            request: The text.
            name: Stands for the image; the texts of an image share it, so that vLLM encodes the image once.
        """
        llm = self._llm
        if llm is None:
            return CaptionError("the engine was closed")
        tokens = self._inputs.tokenizer(self._inputs.text(request))["input_ids"]
        prompt = {
            "prompt_token_ids": tokens,
            "multi_modal_data": {"image": picture},
            "multi_modal_uuids": {"image": [name]},
        }
        if problem := self._no_room(request.config, len(tokens)):  # of the prompt alone
            return CaptionError(problem)
        try:
            (rendered,) = llm.renderer.render_cmpl([prompt])  # type: ignore[list-item]
        except MemoryError:  # the machine's failure, not the image's
            raise
        except Exception as error:  # noqa: BLE001 - a processor raises many types for a picture that it does not accept
            cause = error.__cause__ or error
            return CaptionError(f"image cannot be preprocessed: {type(cause).__name__}: {shorten(str(cause))}")
        if problem := self._no_room(request.config, len(rendered["prompt_token_ids"])):
            return CaptionError(problem)
        return RenderedText(request.config, rendered)

    def _no_room(self, config: CaptionerConfig, tokens: int) -> str | None:
        """Why vLLM would refuse a request, in our words."""
        return no_room(config, tokens, self._limit, resizes=True)


def _normalization(inputs: ProcessorInputs) -> dict[str, Any]:
    """vLLM's argument by which the processor normalises pixels: only if vLLM would not find out how to do it later."""
    return {} if names_normalization(inputs.source, inputs.load_options) else {"mm_device_do_normalize": False}
