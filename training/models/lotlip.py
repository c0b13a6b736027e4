"""The trained model as a folder, and the three lines that use it:

    from lotlip_data.training.models.lotlip import LoTLIP
    model = LoTLIP.load("RUN/train/lotlip/model")
    similarity = model.embed_images([picture]) @ model.embed_texts(["A long text. Of several sentences."]).T

The folder holds config.json (both towers' configurations of transformers, the corner tokens, the text form, the
preprocessing), model.safetensors and the tokenizer's files; nothing else is needed to load it.
"""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lotlip_data.manifests import storage
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.training.config import ConfigError, TrainConfig
from lotlip_data.training.data.image_transforms import ImageTransform, transform_of
from lotlip_data.training.data.tokenizer import Encoded, TextTokenizer, load_tokenizer
from lotlip_data.training.models import towers
from lotlip_data.training.models.pretrained import load_image_tower, load_text_encoder
from lotlip_data.training.models.towers import TextSettings, TextTower, TwoTowers

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_OF_A_TRAINING = ("done.json", "metrics.jsonl")
"""What lies in a training's folder, and in no model's."""


class CheckpointError(UserError):
    """A folder that holds no model of ours, or a damaged one."""


@dataclass
class LoTLIP:
    """Two towers with what turns images and texts into their inputs.

    It computes where its towers are (`model.towers.to("cuda")`); features are given on the CPU.
    """

    towers: TwoTowers
    tokenizer: TextTokenizer
    transform: ImageTransform

    @torch.no_grad()
    def embed_images(self, images: Iterable[Image.Image], batch: int = 64) -> Tensor:
        """Unit float32 features [N, D]; the images are taken `batch` at a time, so they may come from a generator."""
        self.towers.eval()
        features = [self.towers.image(self.transform(some).to(self._device)).cpu() for some in batched(images, batch)]
        return F.normalize(torch.cat(features), dim=-1) if features else torch.zeros(0, self.towers.image.dim)

    def embed_texts(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """Unit float32 [CLS] features [N, D]. Text beyond the context length is cut; `tokenizer.encode` tells where."""
        return self.embed_tokens(self.tokenizer.encode(texts), batch)

    @torch.no_grad()
    def embed_tokens(self, encoded: Encoded, batch: int = 64) -> Tensor:
        """As `embed_texts`, of what `tokenizer.encode` gave."""
        self.towers.eval()
        features = torch.zeros(len(encoded.ids), self.towers.image.dim)
        by_length = sorted(range(len(encoded.ids)), key=lambda index: len(encoded.ids[index]))
        for some in batched(by_length, batch):  # texts of like length together: little padding is computed
            ids = self.tokenizer.pad([encoded.ids[index] for index in some]).to(self._device)
            features[some] = self.towers.text(ids)[:, 0].cpu()
        return F.normalize(features, dim=-1)

    @property
    def _device(self) -> torch.device:
        return next(self.towers.parameters()).device

    def save(self, url: str) -> None:
        """Write the folder (a local path or fsspec URL); config.json comes last."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            self.tokenizer.tokenizer.save_pretrained(folder)
            weights = {name: value.detach().contiguous() for name, value in self.towers.state_dict().items()}
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
            for path in sorted(folder.iterdir()):
                storage.replace(storage.join(url, path.name), path.read_bytes())
        storage.replace(storage.join(url, CONFIG), json.dumps(self.config(), indent=1).encode())

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "format": FORMAT,
            "context_length": self.tokenizer.context_length,
            "text_form": self.tokenizer.form,
            "towers": towers.describe(self.towers),
            "transform": dataclasses.asdict(self.transform),
        }

    @classmethod
    def load(cls, url: str) -> "LoTLIP":
        """The model of the folder `url` (a local path or fsspec URL), ready to embed. Raises CheckpointError."""
        try:
            config = json.loads(storage.read_bytes(storage.join(url, CONFIG)))
        except (FileNotFoundError, NotADirectoryError):
            refuse_training(url)
            raise CheckpointError(
                f"{url}: there is no {CONFIG}, so no trained model; name its `model` folder"
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{url}/{CONFIG}: is not JSON ({error})") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            refuse_training(url)
            raise CheckpointError(f"{url}: not a model of this tool, or of another release (format {FORMAT} is read)")
        described = config["towers"]
        settings = TextSettings(described["corner_tokens"], described["mask"])
        model = towers.build(described["image"], described["text"], settings)
        with _local(url) as folder:
            try:
                tokenizer = load_tokenizer(folder)
            except ValueError as error:  # many lines of transformers' own, about its hub
                raise CheckpointError(f"{url}: has no tokenizer that can be read; its files belong there") from error
            try:
                model.load_state_dict(load_file(pathlib.Path(folder, WEIGHTS)))
            except (OSError, RuntimeError, SafetensorError) as error:
                raise CheckpointError(f"{url}/{WEIGHTS}: cannot be read, or is of other towers ({error})") from error
        return cls(
            model.eval(),
            TextTokenizer(
                tokenizer,
                vocab_size=model.text.vocab_size,
                context_length=config["context_length"],
                corner_tokens=settings.corner_tokens,
                form=config["text_form"],
            ),
            ImageTransform(**config["transform"]),
        )


def refuse_training(url: str) -> None:
    """Raises CheckpointError for the folder of a training, which is easily named in place of the model's in it."""
    names, model = storage.list_names(url), storage.join(url, "model")
    if WEIGHTS in names:
        return
    if storage.exists(storage.join(model, CONFIG)):
        raise CheckpointError(f"{url}: there is no {CONFIG} of a model, but in its folder `model` is one; name {model}")
    if set(_OF_A_TRAINING) & set(names):
        raise CheckpointError(
            f"{url}: there is no {CONFIG} of a model; it is the folder of a training, whose model comes at its end: "
            f"name {model} then"
        )


@contextlib.contextmanager
def _local(url: str) -> Iterator[str]:
    """The folder itself where it is local, else a copy for as long as it is needed."""
    if storage.is_local(url):
        yield storage.normalise(url)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in storage.list_names(url):
            pathlib.Path(scratch, name).write_bytes(storage.read_bytes(storage.join(url, name)))
        yield scratch


def load_model(config: TrainConfig) -> LoTLIP:
    """The model of a configuration before its first step: corners and projection fresh, towers as it says."""
    image_tower, text_tower = resolve(config.image_tower), resolve(config.text_tower)
    image = load_image_tower(image_tower, pretrained=config.pretrained_image, image_size=config.image_size)
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
