"""What both engines put into a model and read out of it, so that they can only agree: image geometry, prompt, text."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, ModelSpec
from lotlip_data.manifests.checkpoints.resolve import resolve

MAX_ASPECT = 50  # beyond it, bringing the short side to the tower's size makes an image of gigabytes


class Inputs:
    """The image processor, tokenizer and prompt of one captioner.

    source: local folder or hub id of the checkpoint. prompt: name → (1, L) tensor, everything that the model takes
    but pixels; the image's placeholder tokens are expanded. stop_ids: tokens that end a caption.
    """

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig):
        import transformers

        self.source = resolve(config.model)
        self.options: dict[str, Any] = {"revision": config.revision, "local_files_only": Path(self.source).is_dir()}
        captioner.check(self.source, self.options)
        # The PIL processors: torchvision need not be installed, and texts do not depend on whether it is.
        processor = getattr(transformers, captioner.processor_class)
        self.processor: Any = processor.from_pretrained(self.source, backend="pil", **self.options)
        self.tokenizer = self.processor.tokenizer
        self.text = (config.template or captioner.template).replace("{prompt}", config.prompt)
        self.blank = Image.new("RGB", (64, 64))
        self.prompt = dict(self.processor(images=self.blank, text=self.text, return_tensors="pt"))
        self.image_size = tuple(self.prompt.pop("pixel_values").shape[-2:])
        self.stop_ids = self._stop_ids()
        self._check_length(config)

    @property
    def prompt_length(self) -> int:
        """Tokens of image and prompt that the language model reads."""
        return self.prompt["input_ids"].shape[1]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, H, W) float32, resized, cropped and normalised."""
        return self._process(image)

    def caption(self, generated: list[int]) -> Caption:
        """The caption of the generated ids, of which those after the first end token are padding."""
        end = next((i for i, token in enumerate(generated) if token in self.stop_ids), None)
        kept = generated if end is None else generated[: end + 1]
        text = self.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Caption(text, "length" if end is None else "stop", len(kept))

    def _process(self, image: Image.Image, **options: Any) -> torch.Tensor:
        short, long = sorted(image.size)
        if short == 0 or long > MAX_ASPECT * short:
            raise CaptionError(f"{image.width}×{image.height} pixels: one side is over {MAX_ASPECT} times the other")
        try:
            return self.processor.image_processor(image.convert("RGB"), return_tensors="pt", **options)["pixel_values"]
        except Exception as error:  # PIL raises almost anything on a broken file that it decodes lazily
            raise CaptionError(f"image cannot be read: {type(error).__name__}: {error}") from error

    def _check_length(self, config: CaptionerConfig) -> None:
        from transformers import AutoConfig

        text = AutoConfig.from_pretrained(self.source, **self.options).get_text_config()
        room = getattr(text, "max_position_embeddings", None)
        if room and self.prompt_length + config.max_new_tokens > room:
            raise ValueError(
                f"captioner {config.name!r}: max_new_tokens={config.max_new_tokens}: image and prompt take "
                f"{self.prompt_length} of the model's {room} tokens; use at most {room - self.prompt_length}"
            )

    def _stop_ids(self) -> frozenset[int]:
        """The end tokens of the checkpoint's generation config and of its tokenizer.

        Both, because Vicuna v1.1, which InstructBLIP is built on, gives another end token in its configuration than the
        one it writes. InstructBLIP's and converted checkpoints may come without a generation config.
        """
        from transformers import GenerationConfig

        try:
            stop = GenerationConfig.from_pretrained(self.source, **self.options).eos_token_id
        except OSError:
            stop = None
        named = [] if stop is None else [stop] if isinstance(stop, int) else stop
        return frozenset([self.tokenizer.eos_token_id, *named])
