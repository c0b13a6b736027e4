"""Captions with vLLM's asynchronous engine: one request per text of an image, one engine process.

This is the only file that imports vllm, and it is imported only when a vLLM engine is loaded. It relies on five
unstable parts of vLLM; tests/test_third_party_internals.py has a test for each:

- `PixelRequests` builds requests from pixels of our own. vLLM's documented input is an image, which it would
  preprocess itself, so that the two engines would no longer see the same pixels.
- `BoundUniProcExecutor` and `BoundMultiprocExecutor` extend vLLM's executors.
- `USAGE` selects vLLM's default number of tokens per step.
- `_check_forms` calls `SamplingParams.verify`, as each request does.
- `_accept_transformers_names` extends the tables by which vLLM's LLaVA and its like rename the weights of a checkpoint.
"""

import dataclasses
import functools
import json
import os
import re
import threading
import uuid
from collections.abc import Sequence
from multiprocessing import active_children, parent_process
from typing import Any, Protocol

import torch
from PIL import Image

from lotlip_data.captioners.base import (
    Capacity,
    Caption,
    CaptionerConfig,
    CaptionError,
    EngineDead,
    EngineOptions,
    TextRequest,
)
from lotlip_data.captioners.engines.adapters import adapter_folder
from lotlip_data.captioners.engines.devices import defaults_of, device_name
from lotlip_data.captioners.engines.preprocessing import PreparedText, Preprocessor, Prompt
from lotlip_data.captioners.engines.process_output import ProcessOutput, root_cause
from lotlip_data.captioners.load_errors import EngineProcessError, shorten
from lotlip_data.captioners.sizing import ModelSizes
from lotlip_data.manifests.settings.structured import StructuredOutput

HAS_GPU = torch.cuda.is_available()
# vLLM reads these when it is imported. Without a GPU, an engine warns a dozen times that there is none.
# A forked process cannot use CUDA once its parent has, and the line above, `plan --time` and a vision half all use it.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING" if HAS_GPU else "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import AsyncEngineArgs, AsyncLLMEngine, ModelRegistry, SamplingParams  # noqa: E402
from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES  # noqa: E402
from vllm.inputs import embeds_input, mm_input  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.model_executor.models.gemma3_mm import Gemma3ForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.llava import LlavaForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.paligemma import PaliGemmaForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.utils import WeightsMapper  # noqa: E402
from vllm.multimodal.inputs import MultiModalKwargsItem, MultiModalKwargsItems  # noqa: E402
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams  # noqa: E402
from vllm.usage.usage_lib import UsageContext  # noqa: E402
from vllm.v1.executor import UniProcExecutor  # noqa: E402
from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # noqa: E402

MAX_SPARE_REQUESTS = 64
"""At most this many requests, and at least half as many, wait in vLLM, so that one is ready when a caption ends."""
MIN_SPARE_REQUESTS = 8
CPU_CACHE_GIB = 0.25
UNQUANTIZED = ("*vision*", "*visual*", "*projector*")
"""Patterns of the names of layers outside the language model."""
UNUSED_TOKEN = 0
"""Stands for the tokens of a prompt of embeddings. It is the unknown word or the padding, which no caption contains."""
RENDERED_PROMPTS = 64
"""Prompts that vLLM has rendered and that are kept, for models whose tokens it makes in another way than we do."""
PROCESS_EXIT_SECONDS = 5

# vLLM chooses the number of tokens per step by the usage. For LLM_CLASS, its class for offline work, the number is four
# to eight times the 2,048 of other users, which are three images of a LLaVA. A CPU is slower with more than those.
USAGE = UsageContext.LLM_CLASS if HAS_GPU else UsageContext.ENGINE_CONTEXT


def _accept_transformers_names() -> None:
    """Let vLLM's LLaVA and its like read checkpoints that transformers 5 has saved, too.

    They lack the part `vision_model` in the names of a CLIP or SigLIP tower, which the hub's checkpoints have. This
    runs on import, because every process of vLLM that loads weights imports this module for its executor.
    """
    tower = re.compile(r"^(?:model\.)?vision_tower\.(?=(?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)")
    renamed = WeightsMapper(orig_to_new_regex={tower: "vision_tower.vision_model."})
    for model in (
        LlavaForConditionalGeneration,
        LlavaNextForConditionalGeneration,
        LlavaOnevisionForConditionalGeneration,
        Gemma3ForConditionalGeneration,
        PaliGemmaForConditionalGeneration,
    ):
        model.hf_to_vllm_mapper = model.hf_to_vllm_mapper | renamed


_accept_transformers_names()


class ModelInputs(Protocol):
    """What an engine reads of the inputs of its model; `Preprocessor` documents each."""

    source: str
    model_config: Any
    stop_ids: frozenset[int]
    special_texts: frozenset[str]

    @property
    def longest(self) -> int: ...

    def sizes(self) -> ModelSizes: ...

    def decode(self, token_ids: list[int], config: CaptionerConfig) -> Caption: ...


class VllmEngine:
    """A model that vLLM runs as a whole. All calls of `caption` must come from one event loop.

    Any thread may call `close`.
    """

    def __init__(self, config: CaptionerConfig, preprocessor: ModelInputs, arguments: AsyncEngineArgs):
        self._preprocessor: Any = preprocessor
        self._sampling = {text.id: sampling_params(text, preprocessor) for text in config.texts}
        self.special_texts = preprocessor.special_texts
        self._adapter = LoRARequest("adapter", 1, adapter_folder(config)) if config.lora else None
        children_before = active_children()
        self._llm: AsyncLLMEngine | None = _start(arguments)
        self._processes = [child for child in active_children() if child not in children_before]
        try:
            self._check_forms(config)
        except BaseException:
            VllmEngine.close(self)  # not that of a subclass, which is not complete yet
            raise
        self._prepare_requests(config)
        self._limit = self._llm.vllm_config.model_config.max_model_len
        max_seqs = self._llm.vllm_config.scheduler_config.max_num_seqs
        spare = max(MIN_SPARE_REQUESTS, min(max_seqs // 2, MAX_SPARE_REQUESTS))
        self.window, self.burst = max_seqs + spare, spare // 2
        self.capacity = _capacity(self._llm, config.quantization)

    def prepare(self, image: Image.Image) -> Any:
        return self._preprocessor.prepare(image, self._limit)

    def prepare_texts(self, image: Image.Image, requests: Sequence[TextRequest]) -> list[Any]:
        return self._preprocessor.prepare_texts(image, requests, self._limit)

    async def caption(self, prepared: Any) -> Caption:
        if isinstance(prepared, CaptionError):
            raise prepared
        return await self._generate(await self._request(prepared), prepared.config)

    def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm:
            llm.shutdown(timeout=0)  # no need to wait for running requests: uncommitted captions are generated again
            for process in self._processes:
                process.join(PROCESS_EXIT_SECONDS)

    def _check_forms(self, config: CaptionerConfig) -> None:
        """Raise ValueError, which names the text, if vLLM cannot enforce the form that a text must have."""
        assert self._llm
        settings = self._llm.vllm_config
        for text in config.texts:
            if text.structured is None:
                continue  # vLLM has no tokenizer where no text has a form
            try:
                self._sampling_of(text).clone().verify(
                    settings.model_config,
                    settings.speculative_config,
                    settings.structured_outputs_config,
                    self._llm.renderer.get_tokenizer(),
                )
            except Exception as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"captioner {text.name!r}: structured: vLLM cannot enforce it: {shorten(reason)}; change it, "
                    "or try another backend: `engine_args: {structured_outputs_config: {backend: guidance}}`"
                ) from error

    def _prepare_requests(self, config: CaptionerConfig) -> None:
        """Prepare what all requests share, once the engine runs."""
        assert self._llm
        self._requests = PixelRequests(config, self._preprocessor, self._llm)

    async def _request(self, prepared: PreparedText) -> Any:
        """Return vLLM's input for one text of an image."""
        return self._requests.build(prepared)

    def _sampling_of(self, config: CaptionerConfig) -> SamplingParams:
        """The sampling of a text, made once."""
        if (sampling := self._sampling.get(config.id)) is None:
            sampling = self._sampling[config.id] = sampling_params(config, self._preprocessor)
        return sampling

    async def _generate(self, request: Any, config: CaptionerConfig) -> Caption:
        llm = self._llm
        if llm is None:
            raise EngineDead("the engine was closed")
        try:
            sampling = self._sampling_of(config)
            async for output in llm.generate(request, sampling, uuid.uuid4().hex, lora_request=self._adapter):
                tokens = list(output.outputs[0].token_ids)
        except Exception as error:
            if llm.errored:
                raise EngineDead(f"vLLM's engine process has died: {error}") from error
            raise CaptionError(f"vLLM: {type(error).__name__}: {error.__cause__ or error}") from error
        return self._preprocessor.decode(tokens, config)


def _start(arguments: AsyncEngineArgs) -> AsyncLLMEngine:
    """Start vLLM's engine. Raises EngineProcessError if its process fails, and as vLLM does if this process fails."""
    with ProcessOutput() as output:
        try:
            return AsyncLLMEngine.from_engine_args(arguments, usage_context=USAGE)
        except Exception as error:  # noqa: BLE001 - it is raised below, when the output is complete
            failure = error
    text = output.text()
    failure.add_note(f"Output of the engine's process:\n{text}")
    if not isinstance(failure, RuntimeError):
        raise failure
    raise EngineProcessError(
        root_cause(text) or f"it ended without an exception ({shorten(str(failure))})"
    ) from failure


def _capacity(llm: AsyncLLMEngine, quantization: str | None) -> Capacity:
    settings = llm.vllm_config
    cache_dtype = settings.cache_config.cache_dtype
    return Capacity(
        str(settings.model_config.dtype).removeprefix("torch."),
        device_name(),
        settings.scheduler_config.max_num_seqs,
        (settings.cache_config.num_gpu_blocks or 0) * settings.cache_config.block_size,
        quantization,
        cache_dtype if cache_dtype.startswith("fp8") else None,
    )


class PixelRequests:
    """Builds vLLM's input for a prompt and one image from preprocessed pixels.

    vLLM renders the captioner's first prompt with a blank image once; each request replaces the pixels and the prompt's
    tokens. Rendering each image anew would double the work outside the engine's process.
    """

    def __init__(self, config: CaptionerConfig, preprocessor: Preprocessor, llm: AsyncLLMEngine):
        self._preprocessor, self._llm = preprocessor, llm
        self._render = functools.lru_cache(RENDERED_PROMPTS)(self._render_prompt)
        rendered = self._render(preprocessor.first)
        (image,) = rendered["mm_kwargs"]["image"]
        if list(image) != ["pixel_values"]:
            raise ValueError(
                f"captioner {config.name!r}: vLLM reads {', '.join(image)} of an image, and only pixel_values is "
                "supported; use engine='transformers'"
            )
        self._pixel_values = image["pixel_values"]
        (self._place,) = rendered["mm_placeholders"]["image"]
        self._image_token = rendered["prompt_token_ids"][self._place.offset]
        self._reads_our_tokens = self._tokens(preprocessor.first) == rendered["prompt_token_ids"]

    def build(self, prepared: PreparedText) -> Any:
        """Return the input for one text of an image. The texts of an image share its hash, so it is encoded once."""
        pixels = prepared.pixels[0].to(self._pixel_values.data.dtype)
        element = dataclasses.replace(self._pixel_values, data=pixels)
        token_ids, placeholders = self._layout(prepared.prompt)
        return mm_input(
            token_ids,
            MultiModalKwargsItems({"image": [MultiModalKwargsItem({"pixel_values": element})]}),
            {"image": [prepared.image_id]},
            placeholders,
        )

    def _layout(self, prompt: Prompt) -> tuple[list[int], Any]:
        """The tokens of a prompt, and the place of the image among them."""
        if not self._reads_our_tokens:
            rendered = self._render(prompt)
            return rendered["prompt_token_ids"], rendered["mm_placeholders"]
        tokens = self._tokens(prompt)
        return tokens, {"image": [dataclasses.replace(self._place, offset=tokens.index(self._image_token))]}

    def _render_prompt(self, prompt: Prompt) -> Any:
        """vLLM's own input for a prompt and a blank image."""
        request = {
            "prompt_token_ids": self._preprocessor.tokenizer(prompt.text)["input_ids"],
            "multi_modal_data": {"image": self._preprocessor.blank},
        }
        (rendered,) = self._llm.renderer.render_cmpl([request])  # type: ignore[list-item]
        return rendered

    @staticmethod
    def _tokens(prompt: Prompt) -> list[int]:
        return prompt.inputs["input_ids"][0].tolist()


class _DiesWithParent:
    """Ends the engine's process, and with it its workers, once the process that started it is gone.

    If SIGKILL ends an actor, vLLM leaves its engine process running and its memory in use.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        threading.Thread(target=_exit_after_parent, name="dies-with-parent", daemon=True).start()
        super().__init__(*arguments, **options)  # the executors load the model here


class BoundUniProcExecutor(_DiesWithParent, UniProcExecutor):
    """The model inside the engine's own process, also without a GPU.

    There, vLLM would start another process, which costs 10 seconds and 800 MB, and would pin every engine of a machine
    to the same cores.
    """


class BoundMultiprocExecutor(_DiesWithParent, MultiprocExecutor):
    """A model that is spread over several GPUs of the machine."""


def _exit_after_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


def embeds_request(embeds_LD: torch.Tensor) -> Any:
    """Return vLLM's input for a prompt that consists of embeddings, (L, D), from its first token to its last.

    Its token ids are given too. Without them, vLLM's penalty on repetitions reads those of an earlier request.
    """
    length = len(embeds_LD)
    return embeds_input(
        prompt_embeds=embeds_LD, prompt_token_ids=[UNUSED_TOKEN] * length, is_token_ids=[False] * length
    )


def sampling_params(config: CaptionerConfig, preprocessor: ModelInputs) -> SamplingParams:
    """Return vLLM's sampling parameters; all are set, so that no generation_config of a checkpoint overrides them."""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p if config.temperature else 1.0,
        top_k=config.top_k if config.temperature else 0,
        min_p=config.min_p if config.temperature else 0.0,
        repetition_penalty=config.repetition_penalty,
        min_tokens=config.min_new_tokens,
        seed=config.seed if config.temperature else None,
        max_tokens=config.max_new_tokens,
        stop_token_ids=sorted(preprocessor.stop_ids),
        stop=list(config.stop),
        detokenize=bool(config.stop),  # only the strings need the text there
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=structured_outputs(config.structured),
    )


def runs_natively(model_config: Any) -> bool:
    """Whether vLLM has an implementation of its own for a model, by the checkpoint's configuration.

    It runs others through transformers' code, if that allows it.
    """
    return not set(model_config.architectures or ()).isdisjoint(ModelRegistry.get_supported_archs())


def quantization_config(config: CaptionerConfig) -> dict[str, Any] | None:
    """What vLLM leaves as it is if it quantises on load: image tower and projector, which are small and sensitive."""
    if config.quantization in ONLINE_QUANT_SHORTHAND_NAMES:
        return {"ignore": list(UNQUANTIZED)}
    return None


def structured_outputs(structured: StructuredOutput | None) -> StructuredOutputsParams | None:
    """Return vLLM's form of a text."""
    if structured is None:
        return None
    return StructuredOutputsParams(
        json=None if structured.json_schema is None else json.dumps(structured.json_schema),
        regex=structured.regex,
        choice=None if structured.choice is None else list(structured.choice),
    )


def engine_args(
    config: CaptionerConfig,
    options: EngineOptions,
    preprocessor: ModelInputs,
    *,
    language_only: bool = False,
    **overrides: Any,
) -> AsyncEngineArgs:
    """Return vLLM's arguments for one captioner.

    Args:
        config: Model, prompt and sampling.
        options: Resources; its `engine_args` win over all others.
        preprocessor: Names the checkpoint and the length of its prompt.
        language_only: Whether vLLM loads the language model only.
        overrides: Arguments in which the architecture differs from one that vLLM runs as a whole.
    """
    defaults = defaults_of(config, options, preprocessor, language_only=language_only)
    one_process = config.tensor_parallel_size == 1
    arguments: dict[str, Any] = {
        "model": preprocessor.source,
        "revision": config.revision,
        "dtype": defaults.dtype,
        "quantization": config.quantization,
        "quantization_config": quantization_config(config),
        "kv_cache_dtype": defaults.kv_cache_dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": BoundUniProcExecutor if one_process else BoundMultiprocExecutor,
        "max_model_len": config.max_model_len or preprocessor.longest,
        "max_num_seqs": options.max_num_seqs or defaults.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "seed": config.seed,
        "generation_config": "vllm",  # not the checkpoint's
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 0,  # each image is preprocessed once
        "enable_prefix_caching": len(config.texts) > 1,  # the texts of an image begin alike, other images do not
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if any(text.structured for text in config.texts):
        # A model that may write white space between the parts of a JSON document can go on with it to the last token.
        arguments["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    cache_gib = options.kv_cache_gib or (None if HAS_GPU else CPU_CACHE_GIB)
    if cache_gib:
        arguments["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
    if not HAS_GPU:
        arguments["enforce_eager"] = True  # compiling and warming up take longer than they save
    return AsyncEngineArgs(**arguments | overrides | dict(options.engine_args))
