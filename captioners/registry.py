"""Which captioners there are: kinds of architecture, published checkpoints, and the tiny ones of the offline world."""

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions
from lotlip_data.captioners.models.base import Captioner
from lotlip_data.captioners.models.instructblip import InstructBlip
from lotlip_data.captioners.models.llava import Llava, ShareGPT4V
from lotlip_data.captioners.models.openai_endpoint import OpenAIEndpoint
from lotlip_data.manifests.settings.messages import unknown_name

ENTRY_POINTS = "lotlip_data.captioners"

_KINDS: dict[str, type[Captioner]] = {
    "instructblip": InstructBlip,
    "llava": Llava,
    "openai": OpenAIEndpoint,
    "sharegpt4v": ShareGPT4V,
}

_MODELS = {
    "instructblip": "Salesforce/instructblip-vicuna-7b",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "sharegpt4v": "Lin-Chen/ShareGPT4V-7B",
}

DEFAULTS: dict[str, CaptionerConfig] = {
    **{kind: CaptionerConfig(name=kind, kind=kind, model=model) for kind, model in _MODELS.items()},
    **{f"tiny-{kind}": CaptionerConfig(name=f"tiny-{kind}", kind=kind, model=f"tiny-{kind}") for kind in _MODELS},
}
"""Short name → configuration: the three published models, and the tiny ones that know only the offline world."""


@cache
def get_kind(kind: str) -> Captioner:
    """The captioner of that kind: one of ours, or what an installed package calls so in its entry points."""
    if kind in _KINDS:
        return _KINDS[kind]()
    others = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in others:
        known = unknown_name(kind, sorted({*_KINDS, *others}))
        raise ValueError(
            f"captioner kind {known}. Another package adds a kind through an entry point in the group {ENTRY_POINTS!r}"
        )
    return others[kind].load()()


def get_default(name: str) -> CaptionerConfig:
    """The configuration of a short name. Raises ValueError, listing them, for another."""
    if name not in DEFAULTS:
        raise ValueError(f"captioner {unknown_name(name, sorted(DEFAULTS))}")
    return DEFAULTS[name]


def load_engine(config: CaptionerConfig, engine: str = "auto", **resources: Any) -> Engine:
    """Loads a captioner; blocks until it is ready.

    engine: `vllm`, `transformers`, another that the kind brings, or `auto`: vLLM where there is a GPU and vLLM is
    installed, transformers otherwise. resources: the fields of `EngineOptions`.

    Raises UserError for an unknown option or a wrong value, and ValueError for an unknown kind.
    """
    return get_kind(config.kind).load(config, engine, EngineOptions.parse(resources, f"captioner {config.name!r}"))
