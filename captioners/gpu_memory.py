"""Estimates how many captions a GPU generates concurrently: the memory left for the KV cache, per caption.

    python -m lotlip_data.captioners.gpu_memory                  # a GPU of 80 GB, as in examples/8x80gb.yaml
    python -m lotlip_data.captioners.gpu_memory --gpu-gib 39.4   # a GPU of 40 GB

Sizes are those of the published architectures, or are read from a model's config.json. WORKING_MEMORY_GIB is an
assumption: vLLM measures this memory when it starts, and the line "engine ready" has the tokens of the resulting
cache. If that differs much from the estimate, set `max_num_seqs` accordingly.
"""

import argparse
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.presets import PRESETS, VLM_SIZES
from lotlip_data.captioners.registry import get_default, get_kind
from lotlip_data.captioners.sizing import (
    INSTRUCTBLIP,
    LLAVA,
    MAX_SEQUENCES,
    ModelSizes,
    kv_cache_tokens,
    max_sequences,
    sizes_of,
)
from lotlip_data.manifests.checkpoints.hub import ModelUnavailable, read_config
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.errors import UserError

logger = logging.getLogger(__name__)

INVALID_CONFIG_ERRORS = (
    *(StrictDataclassError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, AssertionError, RuntimeError),
)
"""What transformers raises for a config.json from which it cannot build a model."""


PUBLISHED_SIZES = {"llava": LLAVA, "sharegpt4v": LLAVA, "instructblip": INSTRUCTBLIP}
"""Sizes of the published checkpoint by captioner kind."""


def read_model_sizes(config: CaptionerConfig) -> ModelSizes | None:
    """Return the sizes of a captioner's model: the known ones of a published checkpoint, else from its config.json.

    Returns:
        None if the hub cannot be reached, if transformers is not installed, or for kinds whose model is unknown, such
        as an endpoint.

    Raises:
        UserError: The config.json belongs to another kind or describes no valid model; the message names the field.
    """
    if config.kind not in (*PUBLISHED_SIZES, "vlm"):
        return None
    if sizes := VLM_SIZES.get(config.model):
        return sizes
    if config.kind in PUBLISHED_SIZES and config.model == get_default(config.kind).model:
        return PUBLISHED_SIZES[config.kind]
    if find_spec("transformers") is None:
        logger.warning(
            "captioner %r: the size of %s is not estimated, because transformers is not installed; "
            "install lotlip-data[full]",
            config.name,
            config.model,
        )
        return None
    layout = _read_layout(config)
    if layout is None:
        return None
    try:
        if config.kind == "vlm":
            return _vlm_sizes(config)
        return _sizes_from_layout(get_kind(config.kind).model_class, layout)
    except INVALID_CONFIG_ERRORS as error:
        readable = isinstance(error, UserError | StrictDataclassError)
        reason = " ".join(str(error).split()) if readable else repr(error)
        raise UserError(f"captioner {config.name!r}: config.json of {config.model}: {reason}") from None


def format_table(gpu_gib: float, utilization: float) -> str:
    """Return a table of the published models on one GPU: weights, cache and `max_num_seqs`."""
    rows = ["captioner       weights  KV a token  cache            a caption   max_num_seqs"]
    vlms = {name: VLM_SIZES[config.model] for name, config in PRESETS.items() if config.model in VLM_SIZES}
    for name, model in (PUBLISHED_SIZES | vlms).items():
        cache_tokens = kv_cache_tokens(model, gpu_gib, utilization)
        rows.append(
            f"{name:<15} {model.weights_gib:4.1f} GiB  {model.kv_bytes_per_token / 2**20:.1f} MiB     "
            f"{cache_tokens:>7,} tokens  {model.sequence_tokens():>4} tokens  "
            f"{min(max_sequences(model, gpu_gib, utilization), MAX_SEQUENCES):>6}"
        )
    return "\n".join(rows)


def _read_layout(config: CaptionerConfig) -> dict[str, Any] | None:
    """Return the content of config.json; None if the model is not on this machine and the hub does not give it."""
    try:
        source = resolve(config.model)
        get_kind(config.kind).check(source, {"revision": config.revision})
        return read_config(source, config.revision)
    except ModelUnavailable as error:
        if not Path(source).is_dir():
            return None
        raise UserError(f"captioner {config.name!r}: {error}") from None
    except ValueError as error:
        raise UserError(f"captioner {config.name!r}: {error}") from None


def _vlm_sizes(config: CaptionerConfig) -> ModelSizes | None:
    """Return the sizes of a vision-language model, with the tokens of a typical image by its own processor."""
    from lotlip_data.captioners.engines.processor_inputs import ProcessorInputs

    try:
        return ProcessorInputs(get_kind(config.kind), config).sizes()
    except (OSError, ImportError, ModelUnavailable) as error:
        logger.warning("captioner %r: the size of %s is not estimated: %s", config.name, config.model, error)
        return None


def _sizes_from_layout(model_class: str, layout: dict[str, Any]) -> ModelSizes:
    """Return the sizes that a config.json describes.

    Raises:
        UserError: A field is missing or invalid.
        Exception: One of INVALID_CONFIG_ERRORS, from transformers.
    """
    import transformers

    architecture = getattr(transformers, model_class)
    expected_type = architecture.config_class.model_type
    if (model_type := layout.get("model_type")) != expected_type:
        raise UserError(f"model_type={model_type!r}: captioners of this kind need {expected_type!r}")
    for part in ("text_config", "vision_config"):
        if not isinstance(layout.get(part), dict):
            raise UserError(f"{part}={layout.get(part)!r}: must hold the settings of that half of the model")
    return sizes_of(architecture, architecture.config_class.from_dict(layout))


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate the number of concurrent captions from a GPU's memory.")
    parser.add_argument("--gpu-gib", type=float, default=79.1, help="Memory of one GPU in GiB, as torch reports it.")
    parser.add_argument(
        "--utilization",
        type=float,
        default=EngineOptions().gpu_memory_utilization,
        help="Share of that memory that vLLM uses (`gpu_memory_utilization`), 0 to 1.",
    )
    arguments = parser.parse_args()
    print(format_table(arguments.gpu_gib, arguments.utilization))


if __name__ == "__main__":
    main()
