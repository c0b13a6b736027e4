"""The class that a captioner is written as: what is particular to its architecture, and nothing else."""

import importlib.util
from typing import Any, ClassVar

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions


class Captioner:
    """One architecture. A subclass of a few lines, and a registry line or an entry point, make a new captioner.

    template: the prompt around `{prompt}`, with `<image>` where the image stands if the tokenizer knows that token.
    model_class: the transformers class that loads the checkpoint and generates.
    needs_gpu: whether an engine takes a GPU where there are some.
    processor_class: the one that makes its inputs; AutoProcessor takes what the checkpoint names.
    engines: those that `load` knows beside `auto`; a subclass that brings another one names it here.

    As it stands, `load` serves a model that transformers runs and vLLM knows too; override it for anything else.
    """

    template: ClassVar[str]
    model_class: ClassVar[str]
    needs_gpu: ClassVar[bool] = True
    processor_class: ClassVar[str] = "AutoProcessor"
    engines: ClassVar[tuple[str, ...]] = ("vllm", "transformers")

    def check(self, source: str, options: dict[str, Any]) -> None:
        """Raises ValueError, saying what to do, for a checkpoint that is not laid out as this captioner expects."""

    def load(self, config: CaptionerConfig, engine: str, resources: EngineOptions) -> Engine:
        """The engine called `engine`, holding the model. Raises ValueError for one that this captioner lacks."""
        if config.request:
            raise ValueError(f"captioner {config.name!r}: request: only kind 'openai' sends requests; leave it out")
        if engine == "auto":
            engine = default_engine()
        if engine == "transformers":
            from lotlip_data.captioners.engines.transformers_engine import TransformersEngine

            return TransformersEngine(self, config, resources)
        if engine == "vllm":
            require_vllm()
            return self.load_vllm(config, resources)
        raise ValueError(f"engine={engine!r}: use auto, vllm or transformers for captioner kind {config.kind!r}")

    def load_vllm(self, config: CaptionerConfig, resources: EngineOptions) -> Engine:
        from lotlip_data.captioners.engines.preprocessing import Inputs
        from lotlip_data.captioners.engines.vllm_engine import VllmEngine, engine_args

        inputs = Inputs(self, config)
        return VllmEngine(config, inputs, engine_args(config, resources, inputs))


def default_engine() -> str:
    """vLLM where there is a GPU and vLLM is installed, transformers otherwise."""
    import torch

    return "vllm" if torch.cuda.is_available() and importlib.util.find_spec("vllm") else "transformers"


def require_vllm() -> None:
    if not importlib.util.find_spec("vllm"):
        raise ValueError(
            "engine='vllm': vLLM is not installed; pip install 'lotlip-data[gpu]' (with a GPU) or 'lotlip-data[cpu]', "
            "or use engine='transformers'"
        )
