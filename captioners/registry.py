"""Names of captioners: kinds of architecture, default configurations, and how an engine is loaded.

A further kind is either a line in `_KINDS` or, from another package, an entry point in the group `ENTRY_POINTS`.
"""

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions
from lotlip_data.captioners.load_errors import explained
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.models.instructblip import InstructBlip
from lotlip_data.captioners.models.llava import Llava, ShareGPT4V
from lotlip_data.captioners.models.openai_endpoint import OpenAIEndpoint
from lotlip_data.captioners.models.vlm import Vlm
from lotlip_data.captioners.presets import PRESETS
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import unknown_name

ENTRY_POINTS = "lotlip_data.captioners"

_KINDS: dict[str, type[Captioner]] = {
    "instructblip": InstructBlip,
    "llava": Llava,
    "openai": OpenAIEndpoint,
    "sharegpt4v": ShareGPT4V,
    "vlm": Vlm,
}


@cache
def get_kind(kind: str) -> Captioner:
    """Return the captioner of a kind: a built-in one, or one that an installed package registers as an entry point.

    Raises ValueError, which lists the known kinds, for any other.
    """
    if kind in _KINDS:
        return _KINDS[kind]()
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in plugins:
        known = unknown_name(kind, sorted({*_KINDS, *plugins}))
        raise ValueError(
            f"captioner kind {known}. Another package adds a kind through an entry point in the group {ENTRY_POINTS!r}"
        )
    return plugins[kind].load()()


def get_default(name: str) -> CaptionerConfig:
    """Return the configuration of a short name. Raises ValueError, which lists the known names, for any other."""
    if name not in PRESETS:
        raise ValueError(f"captioner {unknown_name(name, sorted(PRESETS))}")
    return PRESETS[name]


def load_engine(config: CaptionerConfig, engine: str = "auto", **options: Any) -> Engine:
    """Load a captioner; blocks until it is ready.

    Args:
        config: Model, prompt and sampling.
        engine: `vllm`, `transformers`, another engine of this kind, or `auto`: vLLM if it is installed and a GPU is
            available, else transformers.
        options: Fields of `EngineOptions`.

    Raises:
        UserError: A setting is unknown or invalid, or the checkpoint cannot be loaded as it is.
        EngineStartError: The engine did not start; another try may succeed.
    """
    resources = EngineOptions.parse(options, f"captioner {config.name!r}")
    with explained(config):
        loaded = get_kind(config.kind).load(config, engine, resources)
    if config.prompts and not hasattr(loaded, "prepare_texts"):
        loaded.close()
        raise UserError(
            f"captioner {config.name!r}: `prompts`: the engine of kind {config.kind!r} makes one text for each image; "
            "write one captioner for each prompt"
        )
    return loaded
