"""The image processor and the tokenizer of a LoTLIP in one."""

from typing import Any

from transformers import ProcessorMixin


class LoTLIPProcessor(ProcessorMixin):
    """`processor(images=…, text=…, return_tensors="pt")` gives what the model takes."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **settings: Any) -> None:
        super().__init__(image_processor, tokenizer)
