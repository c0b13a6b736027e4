"""Models and images for the tests of scorers."""

import io

import numpy as np
import torch
from PIL import Image

from lotlip_data.pipeline.scoring.base import RAW, ImageText, ScoredImage
from lotlip_data.training.evaluation.models import TextFeatures


def scored_image(content=b"", raw=(), **long):
    """An image with raw texts, and long texts given as their sub-captions."""
    texts = [ImageText(RAW, text) for text in raw]
    texts += [ImageText(name, " ".join(pieces), tuple(pieces)) for name, pieces in long.items()]
    return ScoredImage("u", "s", content, tuple(texts))


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


WORDS = ("red", "green", "blue")


class ColourModel:
    """The feature of an image is its colour, that of a text the colours that it names. It notes what it embeds."""

    identity = image_identity = "colours"
    text_form = "authors"

    def __init__(self, context_length=4):
        self.context_length = context_length
        self.embedded: list[str] = []

    def image_features(self, images):
        return self.embed_images(images)

    def embed_images(self, images):
        colours = [np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images]
        return torch.nn.functional.normalize(torch.tensor(np.array(colours).reshape(-1, 3), dtype=torch.float32))

    def embed_texts(self, texts):
        self.embedded += texts
        counts = [[float(text.split().count(word)) for word in WORDS] for text in texts]
        features = torch.nn.functional.normalize(torch.tensor(counts).reshape(-1, 3))
        features[[index for index, text in enumerate(texts) if "nan" in text]] = torch.nan
        return TextFeatures(features, [len(text.split()) + 2 for text in texts])

    def embed(self, texts):
        return self.embed_texts(texts).features
