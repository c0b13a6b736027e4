"""Encoders of sentences in the layout of sentence-transformers, such as `sentence-transformers/all-MiniLM-L6-v2`.

A folder has a BERT-like model with its tokenizer. modules.json, 1_Pooling/config.json and sentence_bert_config.json, if
they are there, say how a feature is made from the token features, and how long a text can be. Without 1_Pooling it is
their mean.

Shapes: N texts, L tokens, D feature dimensions.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lotlip_data.manifests.checkpoints import hub
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.data.tokenizer import check_vocabulary, has_words
from lotlip_data.training.devices import pick_device

BATCH_SIZE = 64
MAX_TOKENS = 512
"""The limit of a model that names none."""
_FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


class SentenceEncoder:
    """An encoder on a device.

    Args:
        name: A folder, or an id of the hub.
        device: Such as "cpu". Default: a GPU if there is one.

    Raises:
        UserError: There is no such model, it is no encoder of sentences, or it is damaged.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        self._name, self._device = name, pick_device(device)
        folder = _local_folder(name)
        _check_modules(name, folder)
        self._pooling = _pooling(name, folder)
        self._tokenizer, self._model = self._load(folder)
        settings = _read(name, folder / "sentence_bert_config.json")
        positions = getattr(self._model.config, "max_position_embeddings", MAX_TOKENS)
        self.context_length = int(settings.get("max_seq_length") or min(positions, MAX_TOKENS))
        self._lower = bool(settings.get("do_lower_case"))
        self.identity = self._digest()
        if not self.embed(["two red cars", "a dog on a beach"]).isfinite().all():
            raise UserError(f"{name}: its features are not finite numbers; the weights are damaged: get them again")

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D] on the CPU, with unit rows. Texts are truncated at `context_length` tokens."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # alike lengths have less padding
        features = torch.zeros(len(texts), int(self._model.config.hidden_size))
        for start in range(0, len(order), BATCH_SIZE):
            indices = order[start : start + BATCH_SIZE]
            batch = [texts[index].lower() if self._lower else texts[index] for index in indices]
            encoded = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
            ).to(self._device)
            tokens_NLD = self._model(**encoded).last_hidden_state.float()
            pooled_ND = self._pool(tokens_NLD, encoded["attention_mask"].unsqueeze(-1))
            features[indices] = F.normalize(pooled_ND, dim=-1).cpu()
        return features

    def _pool(self, tokens_NLD: Tensor, mask_NL1: Tensor) -> Tensor:
        if self._pooling == "cls":
            return tokens_NLD[:, 0]
        if self._pooling == "max":
            return tokens_NLD.masked_fill(mask_NL1 == 0, -torch.inf).amax(dim=1)
        return (tokens_NLD * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1)

    def _load(self, folder: Path) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        try:
            loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # transformers and tokenizers raise errors of any type for files of unknown origin
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{self._name}: is no encoder of sentences, or is damaged ({reason})") from error
        model, info = loaded
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # the pooler is not used
        missing += sorted(key for key, *_ in info["mismatched_keys"])
        if missing:
            raise UserError(f"{self._name}: lacks {len(missing)} weights, such as {missing[0]}; get the model again")
        if not hasattr(model, "get_input_embeddings") or getattr(model, "main_input_name", "") != "input_ids":
            raise UserError(f"{self._name}: does not read texts; name an encoder of sentences")
        if model.config.is_encoder_decoder or tokenizer.pad_token_id is None:
            raise UserError(f"{self._name}: is no BERT-like encoder with a padding token; name one")
        if not has_words(tokenizer):
            raise UserError(f"{self._name}: the tokenizer has no vocabulary; add the tokenizer's files")
        try:
            check_vocabulary(tokenizer, int(model.config.vocab_size), "the tokenizer")
        except ValueError as error:
            raise UserError(f"{self._name}: {error}") from None
        return tokenizer, model.eval().to(self._device)

    def _digest(self) -> str:
        """The sha256 of the weights and of everything else that features depend on."""
        settings = [self._pooling, self.context_length, self._lower, self._tokenizer.backend_tokenizer.to_str()]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, value in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _local_folder(name: str) -> Path:
    """The folder of the model, which the hub's is downloaded to. Raises ModelUnavailable."""
    if folder := hub.find_model(name):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(resolve(name), allow_patterns=list(_FILES)))
    except Exception as error:
        if answer := hub.explain(error, name):
            raise answer from error
        raise


def _read(name: str, file: Path) -> Any:
    """The content of a JSON file; {} if there is none."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {file.name} cannot be read ({error}); get the model again") from error


def _check_modules(name: str, folder: Path) -> None:
    """Raise UserError if a feature is made by more than the encoder and the pooling, such as a dense layer."""
    for module in _read(name, folder / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            raise UserError(f"{name}: has a module {kind!r}, which is not supported; known are {', '.join(_MODULES)}")


def _pooling(name: str, folder: Path) -> str:
    """`mean`, `cls` or `max`. Raises UserError for another pooling."""
    content = _read(name, folder / "1_Pooling" / "config.json")
    chosen = [key for key, value in content.items() if key.startswith("pooling_mode_") and value is True]
    if content and (len(chosen) != 1 or chosen[0] not in _POOLINGS):
        raise UserError(f"{name}: its pooling ({', '.join(chosen) or 'none'}) is not supported; use mean, cls or max")
    return _POOLINGS[chosen[0]] if chosen else "mean"
