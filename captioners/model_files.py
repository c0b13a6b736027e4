"""Digests of the files of a local model folder that can change a text.

A captioner's id covers its settings, and a folder's path is one of them. These digests tell whether the folder still
holds the model that made the captions.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from lotlip_data.manifests.checkpoints.resolve import resolve

SUFFIXES = frozenset((".bin", ".jinja", ".json", ".model", ".pt", ".pth", ".py", ".safetensors", ".tiktoken", ".txt"))
"""Endings of configurations, vocabularies, templates, code and weights."""

CHAT_TEMPLATES = "additional_chat_templates"
WHOLE_BYTES = 64 * 2**20
"""Files up to this size are read as a whole."""

BLOCK_BYTES, STRIDE_BYTES = 4096, 4 * 2**20
"""Of a larger file, one block per stride is read: 14 GB take a few seconds, and any tensor of 4 MiB is covered."""


def model_files(model: str) -> dict[str, str]:
    """By relative path, a digest of each file of the model's folder that can change a text.

    Args:
        model: Hub id, folder, or short name of a shipped checkpoint, as in a captioner's settings.

    Returns:
        An empty mapping for a hub id, or a folder that does not exist on this machine.
    """
    folder = Path(resolve(model))
    return {str(file.relative_to(folder)): _digest(file) for file in _files(folder)} if folder.is_dir() else {}


def combined_digest(files: dict[str, str]) -> str:
    """What distinguishes two models under the same settings; empty if there are no files."""
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12] if files else ""


def changed_files(recorded: dict[str, str], current: dict[str, str]) -> list[str]:
    """The files that were added, removed or changed, sorted."""
    return sorted(name for name in recorded.keys() | current.keys() if recorded.get(name) != current.get(name))


def _files(folder: Path) -> Iterator[Path]:
    subfolders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and _holds_model_files(path))]
    for subfolder in subfolders:
        for file in sorted(subfolder.iterdir()):
            if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file():
                yield file


def _holds_model_files(folder: Path) -> bool:
    """Whether a subfolder is part of the model: chat templates, or a second tokenizer such as InstructBLIP's."""
    return folder.name == CHAT_TEMPLATES or folder.name.endswith("tokenizer")


def _digest(file: Path) -> str:
    digest, size = hashlib.sha256(), file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            digest.update(stream.read())
        else:
            for offset in (*range(0, size, STRIDE_BYTES), size - BLOCK_BYTES):
                stream.seek(offset)
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]
