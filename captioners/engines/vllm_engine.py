"""Captions with vLLM's asynchronous engine: one request an image, one engine process behind it.

This file alone imports vllm, and is itself imported only when a vLLM engine is asked for.
"""

import dataclasses
import os
import threading
import uuid
from multiprocessing import active_children, parent_process
from typing import Any

import torch
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionerConfig, CaptionError, EngineDead, EngineOptions
from lotlip_data.captioners.engines.preprocessing import Inputs

GPU = torch.cuda.is_available()
# Read by vLLM when it is imported. An engine on a CPU warns a dozen times about being one.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING" if GPU else "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import SamplingParams  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.inputs import embeds_input  # noqa: E402
from vllm.multimodal.inputs import MultiModalKwargsItem, MultiModalKwargsItems  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.usage.usage_lib import UsageContext  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402
from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # noqa: E402
from vllm.v1.executor.uniproc_executor import UniProcExecutor  # noqa: E402

SEQS = 128 if GPU else 64
# So many images at most, and at least half as many, wait in vLLM, so that one is there whenever a caption ends.
SPARE = 64
# By it vLLM chooses how many tokens a step may take: for a class of its own for work offline four to eight times the
# 2,048 of other users, which are three images of a LLaVA. On a CPU more than those are slower.
USAGE = UsageContext.LLM_CLASS if GPU else UsageContext.ENGINE_CONTEXT
CPU_CACHE_GIB = 0.25


class VllmEngine:
    """A model that vLLM runs by itself. Must be used from one event loop; `close` may be called from any thread."""

    def __init__(self, config: CaptionerConfig, inputs: Inputs, arguments: AsyncEngineArgs):
        self._inputs = inputs
        self._sampling = sampling_params(config, inputs)
        others = active_children()
        self._llm: AsyncLLM | None = AsyncLLM.from_engine_args(arguments, usage_context=USAGE)
        self._processes = [child for child in active_children() if child not in others]
        self._rendered: Any = self._render(config)
        seqs = self._llm.vllm_config.scheduler_config.max_num_seqs
        spare = max(8, min(seqs // 2, SPARE))
        self.window, self.burst = seqs + spare, spare // 2

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return self._inputs.pixels(image)

    async def caption(self, prepared: torch.Tensor) -> Caption:
        return await self._generate(await self._request(prepared))

    def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm:
            llm.shutdown(timeout=0)  # nothing is worth waiting for: what is not committed will be asked again
            for process in self._processes:
                process.join(5)

    def _render(self, config: CaptionerConfig) -> Any:
        """What vLLM makes of the prompt and one image, of which each image changes only the pixels.

        Rendering it once, instead of for each image anew, halves the work outside the engine's process.
        """
        assert self._llm
        asked = {
            "prompt_token_ids": self._inputs.tokenizer(self._inputs.text)["input_ids"],
            "multi_modal_data": {"image": self._inputs.blank},
        }
        (rendered,) = self._llm.renderer.render_cmpl([asked])  # type: ignore[list-item]
        (image,) = rendered["mm_kwargs"]["image"]
        if list(image) != ["pixel_values"]:
            raise ValueError(f"captioner {config.name!r}: vLLM reads {', '.join(image)} of an image, not pixels alone")
        del rendered["arrival_time"]
        return rendered

    async def _request(self, pixels: torch.Tensor) -> Any:
        """What vLLM is asked, with pixels of our making: both engines see the very same."""
        ((name, blank),) = self._rendered["mm_kwargs"]["image"][0].items()
        element = dataclasses.replace(blank, data=pixels[0].to(blank.data.dtype))
        return self._rendered | {
            "mm_kwargs": MultiModalKwargsItems({"image": [MultiModalKwargsItem({name: element})]}),
            "mm_hashes": {"image": [uuid.uuid4().hex]},
        }

    async def _generate(self, request: Any) -> Caption:
        llm = self._llm
        if llm is None:
            raise EngineDead("the engine was closed")
        try:
            async for output in llm.generate(request, self._sampling, uuid.uuid4().hex):
                tokens = list(output.outputs[0].token_ids)
        except EngineDeadError as error:
            raise EngineDead(f"vLLM's engine process has died: {error}") from error
        except Exception as error:
            if llm.errored:
                raise EngineDead(f"vLLM's engine process has died: {error}") from error
            raise CaptionError(f"vLLM: {type(error).__name__}: {error.__cause__ or error}") from error
        return self._inputs.caption(tokens)


class _DiesWithParent:
    """Ends the engine's process, and with it its workers, when the process that started it has gone.

    vLLM leaves it running, with its memory, when an actor is killed with SIGKILL.
    """

    def _init_executor(self) -> None:
        threading.Thread(target=_exit_after_parent, name="dies-with-parent", daemon=True).start()
        super()._init_executor()  # type: ignore[misc]


class BoundUniProcExecutor(_DiesWithParent, UniProcExecutor):
    """The model inside the engine's own process, also without a GPU: vLLM would start another process there, which
    costs 10 seconds and 800 MB, and pins every engine of a machine to the same cores."""


class BoundMultiprocExecutor(_DiesWithParent, MultiprocExecutor):
    """A model spread over several GPUs of the machine."""


def _exit_after_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


def embeds_request(embeds_LD: torch.Tensor) -> Any:
    """What vLLM is asked to continue a prompt that is embeddings from its first token to its last."""
    return embeds_input(prompt_embeds=embeds_LD)


def sampling_params(config: CaptionerConfig, inputs: Inputs) -> SamplingParams:
    """Every setting explicit, so that a checkpoint's generation_config cannot change what ours says."""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p if config.temperature else 1.0,
        seed=config.seed if config.temperature else None,
        max_tokens=config.max_new_tokens,
        stop_token_ids=sorted(inputs.stop_ids),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def engine_args(config: CaptionerConfig, resources: EngineOptions, inputs: Inputs, **special: Any) -> AsyncEngineArgs:
    """vLLM's arguments for one captioner. special: what its architecture needs instead of or beyond a native model."""
    one_process = config.tensor_parallel_size == 1
    arguments: dict[str, Any] = {
        "model": inputs.source,
        "revision": config.revision,
        "dtype": config.dtype if GPU or config.dtype != "auto" else "float32",
        "quantization": config.quantization,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": BoundUniProcExecutor if one_process else BoundMultiprocExecutor,
        "max_model_len": config.max_model_len or inputs.prompt_length + config.max_new_tokens,
        "max_num_seqs": resources.max_num_seqs or SEQS,
        "gpu_memory_utilization": resources.gpu_memory_utilization,
        "seed": config.seed,
        "generation_config": "vllm",  # not the checkpoint's
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 0,  # an image is seen once
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    cache_gib = resources.kv_cache_gib or (None if GPU else CPU_CACHE_GIB)
    if cache_gib:
        arguments["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
    if not GPU:
        arguments["enforce_eager"] = True  # compiling and warming up take longer than they save
    return AsyncEngineArgs(**arguments | special | dict(resources.engine_args))
