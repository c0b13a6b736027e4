"""The base class of captioners: what is particular to one architecture."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lotlip_data.captioners.base import CaptionerConfig, Engine, EngineOptions
from lotlip_data.manifests.checkpoints.hub import read_config
from lotlip_data.manifests.checkpoints.model_files import check_files
from lotlip_data.manifests.checkpoints.resolve import resolve
from lotlip_data.manifests.wording import plural

VLM_SETTINGS = (
    *("system", "chat_template_kwargs", "min_pixels", "max_pixels", "size"),
    *("stop", "trust_remote_code", "lora", "lora_revision"),
)
"""Settings that no kind reads but `vlm`, and kinds of other packages that say so."""

COMMON_SETTINGS = ("name", "kind", "model", "revision", "prompts")
"""Settings that every captioner has."""


class Captioner:
    """One architecture. To add one, subclass this in a few lines and register it (see `captioners/registry.py`).

    As it stands, `load` serves a model that both transformers and vLLM run; override it for anything else.

    Attributes:
        template: Prompt around `{prompt}`, with `<image>` at the image's position if the tokenizer knows that token.
        model_class: Name of the transformers class that loads the checkpoint and generates.
        needs_gpu: Whether an engine takes a GPU if there is one.
        uses_torch: Whether an engine computes with torch in its actor, which must see the GPUs that Ray reserves for
            the actor.
        loads_model: Whether the setting `model` is loaded here. Off: a server elsewhere knows it by that name.
        processor_class: Name of the transformers class that makes the model's inputs; AutoProcessor takes the one that
            the checkpoint names.
        uses_chat_template: Whether the checkpoint's own chat template, if it has one, comes before `template`.
        model_types: The values of `model_type` in config.json of the checkpoints that `model_class` loads; empty if
            they are not checked.
        layout_parts: Fields of config.json that must hold the settings of a part of the model.
        engines: Names of the engines that `load` accepts besides `auto`.
        reads_all_settings: Whether the kind reads the settings that the documentation gives to kind `vlm` only.
        settings: Names of the only settings that the kind reads beside those that every captioner has (`name`, `kind`,
            `model`, `revision`, `prompts`); None: all that its engines have.
    """

    template: ClassVar[str]
    model_class: ClassVar[str]
    needs_gpu: ClassVar[bool] = True
    uses_torch: ClassVar[bool] = True
    loads_model: ClassVar[bool] = True
    processor_class: ClassVar[str] = "AutoProcessor"
    uses_chat_template: ClassVar[bool] = False
    model_types: ClassVar[tuple[str, ...]] = ()
    layout_parts: ClassVar[tuple[str, ...]] = ()
    engines: ClassVar[tuple[str, ...]] = ("vllm", "transformers")
    reads_all_settings: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...] | None] = None

    def check(self, source: str, load_options: dict[str, Any]) -> None:
        """Check that the checkpoint has the layout of this architecture. It reads config.json only.

        Args:
            source: Local folder or hub id.
            load_options: Keyword arguments for `from_pretrained`, such as `revision`.

        Raises:
            ValueError: It has not; the message has the fix.
            ModelUnavailable: There is no such checkpoint.
        """
        layout = read_config(source, load_options.get("revision"))
        model_type = layout.get("model_type")
        if self.model_types and model_type not in self.model_types:
            raise ValueError(
                f"{source}: config.json: model_type={model_type!r}: captioners of this kind need "
                f"{' or '.join(map(repr, self.model_types))}; set `kind` to that of the model, or use another model"
            )
        for part in self.layout_parts:
            if not isinstance(layout.get(part), dict):  # transformers would take a model of 7B parameters instead
                raise ValueError(
                    f"{source}: config.json: {part}={layout.get(part)!r}: must hold the settings of that part of the "
                    "model; download the file again"
                )
        self.check_layout(source, layout)

    def check_layout(self, source: str, layout: Mapping[str, Any]) -> None:
        """Check what is particular to this architecture.

        Args:
            source: Local folder or hub id.
            layout: The content of the checkpoint's config.json.

        Raises:
            ValueError: The layout does not fit; the message has the fix.
        """

    def check_model(self, config: CaptionerConfig) -> None:
        """Check without loading it that the captioner's model is available and fits. A driver calls this.

        Raises as `check` does. A captioner that no class of transformers loads is not checked.
        """
        if hasattr(self, "model_class"):
            source = resolve(config.model)
            self.check(source, {"revision": config.revision})
            if Path(source).is_dir():
                check_files(Path(source), config.model, has_own_code=config.trust_remote_code)

    def check_settings(self, config: CaptionerConfig) -> None:
        """Check that the kind reads every setting that the configuration and its texts give. A driver calls this.

        Raises:
            ValueError: It does not read one; the message names it.
        """
        for text in (config, *config.texts):
            self._check_settings_of(text)

    def _check_settings_of(self, text: CaptionerConfig) -> None:
        for field in _changed_settings(text):
            if not self.reads_all_settings and field in VLM_SETTINGS:
                raise ValueError(f"captioner {text.name!r}: {field}: only kind 'vlm' has this setting; leave it out")
            if field == "request" and "endpoint" not in self.engines:
                raise ValueError(f"captioner {text.name!r}: request: only kind 'openai' sends requests; leave it out")
            if self.settings is not None and field not in (*COMMON_SETTINGS, *self.settings):
                raise ValueError(
                    f"captioner {text.name!r}: {field}: kind {text.kind!r} does not read this setting; leave it out"
                )

    def packages(self, config: CaptionerConfig, engine: str) -> tuple[str, ...]:
        """The packages that the model needs where its engine runs, and that the project does not require.

        Args:
            config: Model, prompt and sampling.
            engine: One of `engines`, or `auto`.
        """
        return ()

    def check_options(self, config: CaptionerConfig, engine: str, options: EngineOptions) -> None:
        """Check, without loading anything, what the engine needs where it runs: packages, an address, a key.

        Args:
            config: Model, prompt and sampling.
            engine: One of `engines`, or `auto`.
            options: Resources that the engine may use.

        Raises:
            ValueError: Something is missing; the message has the fix.
        """
        if engine == "vllm":
            require_vllm()
        if "transformers" in self.engines and any(_vllm_settings(config)):
            require_engine(config, self.choose_engine(config, engine))
        if missing := missing_packages(self.packages(config, engine)):
            raise ValueError(
                f"captioner {config.name!r}: {config.model} needs {packages_to_install(missing)} where its engine runs"
            )

    def choose_engine(self, config: CaptionerConfig, engine: str) -> str:
        """The name of the engine that `load` takes, which each caption records.

        Args:
            config: Model, prompt and sampling.
            engine: One of `engines`, or `auto`.
        """
        if engine != "auto":
            return engine
        if len(self.engines) == 1:
            return self.engines[0]
        default = default_engine()
        return default if default in self.engines else engine

    def prepare_files(self, config: CaptionerConfig, folder: Path, engine: str, options: EngineOptions) -> list[str]:
        """Convert or export what the engine reads in place of the model's files, before the first start.

        Args:
            config: Model, prompt and sampling.
            folder: The model's files on this machine.
            engine: One of `engines`, or `auto`.
            options: Resources that the engine may use.

        Returns:
            What was done and what the user must set, one line each.
        """
        return []

    def load(self, config: CaptionerConfig, engine: str, options: EngineOptions) -> Engine:
        """Load the model into an engine.

        Args:
            config: Model, prompt and sampling.
            engine: One of `engines`, or `auto`.
            options: Resources that the engine may use.

        Raises:
            ValueError: The engine is unknown or not installed, or a setting or the checkpoint does not fit it.
        """
        self.check_settings(config)
        engine = self.choose_engine(config, engine)
        require_engine(config, engine)
        if engine == "transformers":
            return self.load_transformers(config, options)
        if engine == "vllm":
            require_vllm()
            return self.load_vllm(config, options)
        raise ValueError(f"engine={engine!r}: use auto, vllm or transformers for captioner kind {config.kind!r}")

    def load_transformers(self, config: CaptionerConfig, options: EngineOptions) -> Engine:
        """Load the model into transformers."""
        from lotlip_data.captioners.engines.transformers_engine import TransformersEngine

        return TransformersEngine(self, config, options)

    def load_vllm(self, config: CaptionerConfig, options: EngineOptions) -> Engine:
        """Load the model into vLLM, which runs it as a whole."""
        from lotlip_data.captioners.engines.preprocessing import Preprocessor
        from lotlip_data.captioners.engines.vllm_engine import VllmEngine, engine_args

        preprocessor = Preprocessor(self, config)
        return VllmEngine(config, preprocessor, engine_args(config, options, preprocessor))


def default_engine() -> str:
    """Return `vllm` if it is installed and there is a GPU, else `transformers`."""
    if not importlib.util.find_spec("vllm"):
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def require_engine(config: CaptionerConfig, engine: str) -> None:
    """Check that an engine has what the configuration asks for.

    Args:
        config: Model, prompt and sampling.
        engine: Name of the engine that runs it.

    Raises:
        ValueError: The engine is transformers, and a setting needs vLLM.
    """
    if engine == "transformers" and (settings := list(_vllm_settings(config))):
        raise ValueError(
            f"captioner {config.name!r}: {' and '.join(settings)}: only vLLM has this, and `auto` takes vLLM where "
            "it is installed and there is a GPU; give `recaption --engine vllm` or set `pool: {engine: vllm}`, which "
            "needs no GPU, or leave it out to run transformers"
        )


def _vllm_settings(config: CaptionerConfig) -> Iterator[str]:
    """The settings, as they are written, that only vLLM has."""
    if config.quantization:
        yield f"quantization: {config.quantization}"
    if config.kv_cache_dtype != "auto":
        yield f"kv_cache_dtype: {config.kv_cache_dtype}"
    if config.tensor_parallel_size > 1:
        yield f"tensor_parallel_size: {config.tensor_parallel_size}"
    if names := [text.name for text in config.texts if text.structured is not None]:
        yield f"structured (of {', '.join(names)})" if config.prompts else "structured"


def _changed_settings(config: CaptionerConfig) -> list[str]:
    """The settings that are not at their default."""
    return [
        name
        for name, field in type(config).model_fields.items()
        if name not in COMMON_SETTINGS and getattr(config, name) != field.get_default(call_default_factory=True)
    ]


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those of these packages that are not installed here."""
    return [name for name in names if not importlib.util.find_spec(name)]


def packages_to_install(names: Sequence[str]) -> str:
    """Packages and how to install them, for a message."""
    return f"the {plural(len(names), 'package')} {' and '.join(names)}: pip install {' '.join(names)}"


def require_vllm() -> None:
    """Raise ValueError with the fix if vLLM is not installed."""
    if not importlib.util.find_spec("vllm"):
        raise ValueError(
            "engine='vllm': vLLM is not installed; pip install 'lotlip-data[gpu]' (with a GPU) or 'lotlip-data[cpu]', "
            "or use engine='transformers'"
        )
