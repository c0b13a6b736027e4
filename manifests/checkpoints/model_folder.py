"""The files of a trained model's folder: its config.json, which has their digests, and the comparison with them.

It needs no torch, so `verify` reads models on any machine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.digests import Digest, DigestMismatch, digest_of, digest_of_file
from lotlip_data.manifests.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT, POOLED_FORMAT, CLIP_FORMAT = 1, 2, 3
"""Version of config.json. A model whose image feature is no class token has the second. One whose text tower is not
BERT-like, whose image tower has a projection, or whose logits have a bias has the third. Earlier releases refuse it."""
REMEDY = "Copy the model again, or train it again."


class CheckpointError(UserError):
    """The folder has no model of this project, or a damaged one."""


@with_config(ConfigDict(extra="forbid"))
class Towers(TypedDict):
    """The configurations of both towers for transformers, and the text settings."""

    image: dict[str, Any]
    text: dict[str, Any]
    corner_tokens: int
    mask: bool
    pooling: NotRequired[str]
    projection: NotRequired[int]
    logit_bias: NotRequired[bool]
    """Whether the loss is a sigmoid of pairs, whose bias is among the weights."""


@with_config(ConfigDict(extra="forbid"))
class Transform(TypedDict):
    """The preprocessing of images."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: NotRequired[Literal["shortest", "squash"]]


@with_config(ConfigDict(extra="forbid"))
class ModelConfig(TypedDict):
    """The content of config.json."""

    format: int
    context_length: int
    text_form: Literal["authors", "punkt"]
    towers: Towers
    transform: Transform
    files: NotRequired[dict[str, Digest]]
    """Size and sha256 of every other file of the folder, by name. Earlier releases do not record them."""


def encode_config(config: Mapping[str, Any], folder: Path, names: Iterable[str]) -> bytes:
    """config.json with the digests of the files `names` of a local folder."""
    files = {name: asdict(digest_of_file(folder / name)) for name in sorted(names)}
    return artifacts.encode_json({**config, "files": files}, indent=1)


def parse_config(content: bytes, url: str) -> ModelConfig | None:
    """The content of the config.json at `url`, or None if it is not that of a model of this project and release.

    Raises:
        CheckpointError: It is damaged.
    """
    config = artifacts.parse_json(content, url, REMEDY, artifacts.JsonObject, CheckpointError)
    if config.get("format") not in (FORMAT, POOLED_FORMAT, CLIP_FORMAT) or "towers" not in config:
        return None
    return artifacts.validate(config, url, REMEDY, ModelConfig, CheckpointError)


def check_files(folder: str, config: ModelConfig, url: str) -> None:
    """Compare the files of a model with their digests, if config.json has any.

    Args:
        folder: The folder, as a path or URL.
        config: Its config.json.
        url: The name of the folder in errors.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    for name, recorded in config.get("files", {}).items():
        try:
            recorded.check(digest_of(storage.join(folder, name)))
        except FileNotFoundError:
            raise CheckpointError(f"{url}/{name}: is missing, but {CONFIG} names it. {REMEDY}") from None
        except DigestMismatch as error:
            raise CheckpointError(f"{url}/{name}: is damaged ({error}). {REMEDY}") from None
