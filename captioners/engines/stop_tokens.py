"""The tokens and strings that end a caption, and the caption of generated tokens."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from lotlip_data.captioners.base import Caption


def read_stop_ids(source: str, load_options: dict[str, Any], model_config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the end tokens of a checkpoint's generation config and of its tokenizer.

    Both, because the configuration of Vicuna v1.1, on which InstructBLIP is built, names another end token than the one
    that the model writes. A checkpoint without a generation config has the end tokens of its config.json, as in
    transformers' `generate`.

    Args:
        source: Local folder or hub id.
        load_options: Keyword arguments for `from_pretrained`, such as `revision`.
        model_config: The content of config.json.
        tokenizer: The checkpoint's tokenizer.

    Raises:
        ValueError: There is no end token, or one is not the number of a token.
    """
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    name = "generation_config.json"
    hub_options = {name: value for name, value in load_options.items() if name != "trust_remote_code"}
    if cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_options):
        generation = GenerationConfig.from_pretrained(source, **hub_options)
    else:
        generation = GenerationConfig.from_model_config(model_config)
    configured = generation.eos_token_id
    tokens = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    stop_ids = frozenset(token for token in tokens if token is not None)
    if not stop_ids:
        raise ValueError(
            f"{source}: names no end token, so no caption would end; set eos_token in tokenizer_config.json, or "
            "eos_token_id in generation_config.json"
        )
    if invalid := [token for token in stop_ids if not isinstance(token, int) or token < 0]:
        raise ValueError(
            f"{source}: the end token {invalid[0]!r} is not the number of a token; correct eos_token_id in "
            "generation_config.json or config.json"
        )
    return stop_ids


def decode(token_ids: Sequence[int], tokenizer: Any, stop_ids: frozenset[int], stop: Sequence[str] = ()) -> Caption:
    """Return the caption of generated tokens.

    Args:
        token_ids: Generated tokens; those after the first end token are padding.
        tokenizer: The checkpoint's tokenizer.
        stop_ids: Tokens that end a caption.
        stop: Strings that end a caption, without being part of it.
    """
    end = next((i for i, token in enumerate(token_ids) if token in stop_ids), None)
    kept = list(token_ids if end is None else token_ids[: end + 1])
    text: str = tokenizer.decode(kept, skip_special_tokens=True)
    if (position := _first_stop(text, stop)) is not None:
        count = 1 + bisect_left(range(1, len(kept)), True, key=lambda n: _ends(kept[:n], tokenizer, stop))
        return Caption(text[:position].strip(), "stop", count)
    return Caption(text.strip(), "length" if end is None else "stop", len(kept))


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The position of the first stop string in a text; None if there is none."""
    return min((position for string in stop if (position := text.find(string)) >= 0), default=None)


def _ends(token_ids: Sequence[int], tokenizer: Any, stop: Sequence[str]) -> bool:
    return _first_stop(tokenizer.decode(token_ids, skip_special_tokens=True), stop) is not None
