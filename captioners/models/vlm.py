"""Any vision-language model: transformers' image-text-to-text models, and those that vLLM runs.

Nothing here is particular to one family: the checkpoint's processor makes the inputs, and its chat template the prompt.
"""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions
from lotlip_data.captioners.engines.adapters import adapter_folder
from lotlip_data.captioners.families import MODEL_TYPES, check_pixel_limits, packages_of
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.manifests.checkpoints.hub import ModelUnavailable, read_config
from lotlip_data.manifests.checkpoints.resolve import resolve

logger = logging.getLogger(__name__)


class Vlm(Captioner):
    """`template` is for checkpoints without a chat template, such as PaliGemma's."""

    template = "<image>{prompt}"
    model_class = "AutoModelForImageTextToText"
    uses_chat_template = True
    reads_all_settings = True

    def check_settings(self, config: CaptionerConfig) -> None:
        super().check_settings(config)
        check_pixel_limits(config, MODEL_TYPES.get(config.model))

    def check_model(self, config: CaptionerConfig) -> None:
        layout = read_config(resolve(config.model), config.revision)
        check_remote_code(config, layout)
        check_pixel_limits(config, layout.get("model_type"))
        super().check_model(config)
        if config.lora:
            adapter_folder(config)

    def packages(self, config: CaptionerConfig, engine: str) -> tuple[str, ...]:
        adapter = ("peft",) if config.lora and self.choose_engine(config, engine) == "transformers" else ()
        return (*packages_of(_model_type(config)), *adapter)

    def load(self, config: CaptionerConfig, engine: str, options: EngineOptions) -> Engine:
        check_remote_code(config, read_config(config.model, config.revision))
        if config.trust_remote_code:
            logger.warning(
                f"captioner {config.name!r}: trust_remote_code: Python code from the repository of {config.model} runs "
                "with your rights: it can read, change and send whatever you can. Set `revision` to a commit that you "
                "have read"
            )
        return super().load(config, engine, options)

    def load_transformers(self, config: CaptionerConfig, options: EngineOptions) -> Engine:
        from lotlip_data.captioners.engines.transformers_processor import ProcessorEngine

        return ProcessorEngine(self, config, options)

    def load_vllm(self, config: CaptionerConfig, options: EngineOptions) -> Engine:
        from lotlip_data.captioners.engines.vllm_processor import VllmProcessorEngine

        return VllmProcessorEngine(self, config, options)


def check_remote_code(config: CaptionerConfig, layout: Mapping[str, Any]) -> None:
    """Raise ValueError if a model needs code of its own repository, which the settings do not allow.

    Args:
        config: The captioner.
        layout: The content of the checkpoint's config.json.
    """
    if config.trust_remote_code or not layout.get("auto_map") or _is_known(str(layout.get("model_type"))):
        return
    raise ValueError(
        f"captioner {config.name!r}: {config.model} is no model of the installed transformers "
        f"(model_type={layout.get('model_type')!r}): it brings Python code of its own, which would run with your "
        "rights. If you trust it, set trust_remote_code: true and `revision` to a commit that you have read"
    )


def _model_type(config: CaptionerConfig) -> str | None:
    """The family of a captioner's model; None where neither this machine nor the hub says it."""
    if known := MODEL_TYPES.get(config.model):
        return known
    with contextlib.suppress(ModelUnavailable, ValueError):  # `check_model` reports it
        return read_config(resolve(config.model), config.revision).get("model_type")
    return None


def _is_known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES
