"""What `recaption.py` measures: the pairs of sides for each ratio, and the job of each side."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heavy_models import CAPTIONING_LLAVA, write_instructblip, write_llava, write_qwen

Job = dict[str, Any]

RATIOS = {
    "tiny": {
        "ours_vs_bare_vllm": [("ours", "bare_vllm")],
        "ours_vs_ray_data_llm": [("ours", "ray_data_llm")],
        "ours_vs_ray_data_llm_tuned": [("ours", "ray_data_llm_tuned"), ("ours", "ray_data_llm_engine_only")],
        "ours_vs_generate": [("ours", "generate")],
        "instructblip_vs_generate": [
            ("instructblip_ours", "instructblip_generate"),
            ("instructblip_ours", "instructblip_generate_16"),
        ],
    },
    "heavy": {
        "ours_vs_bare_vllm": [("llava_ours", "llava_bare_vllm"), ("qwen_ours", "qwen_bare_vllm")],
        "ours_vs_ray_data_llm": [("llava_ours", "llava_ray_data_llm"), ("qwen_ours", "qwen_ray_data_llm")],
        "instructblip_vs_generate": [
            ("instructblip_ours", "instructblip_generate"),
            ("instructblip_ours", "instructblip_generate_16"),
        ],
    },
}
"""Weight → ratio → pairs of our side and the other, of which the smallest ratio counts.

Each pair is measured alone, because idle engines take CPU time and memory from the others.
"""


@dataclass(frozen=True)
class Workload:
    """How much a round does with the models of one weight.

    Attributes:
        images: Number of images; with the heavy models that of InstructBLIP, since a batch of `generate` has 64.
        shards: Number of tars.
        pixels: Width and height of the images.
        tokens: New tokens of LLaVA and Qwen2.5-VL: the limit of the tiny model, and the exact number of the heavy ones,
            whose random weights would not end a text.
        seqs: Captions at a time, on all sides; InstructBLIP has 64 with either weight.
        rounds: Measured rounds, after one warm-up.
    """

    images: int
    shards: int
    pixels: int
    tokens: int
    seqs: int
    rounds: int


WORKLOADS = {"tiny": Workload(1024, 4, 96, 64, 64, 9), "heavy": Workload(128, 4, 224, 32, 16, 3)}
HEAVY_DTYPE = "bfloat16"
"""A CPU with AVX-512 BF16 multiplies the matrices of these models 2.3 to 3.3 times as fast in it as in float32."""
INSTRUCTBLIP_SEQS = 64

Sides = Mapping[str, tuple[str, Job, str]]
"""The script, job and Python interpreter of each side, by name."""


def make_sides(weight: str, load: Workload, work: Path, tars: list[str], ray_python: str) -> Sides:
    """The sides of one weight.

    Args:
        weight: `tiny` or `heavy`.
        load: How much a round does.
        work: A folder with the run, into which heavy models are written.
        tars: Paths of its tars.
        ray_python: The interpreter that runs ray.data.llm; empty without one, and then its sides are left out.
    """
    make = _tiny_sides if weight == "tiny" else _heavy_sides
    return {
        name: (script, job, ray_python if script == "ray_data_llm" else sys.executable)
        for name, (script, job) in make(load, work, tars).items()
        if ray_python or script != "ray_data_llm"
    }


def _tiny_sides(load: Workload, work: Path, tars: list[str]) -> dict[str, tuple[str, Job]]:
    from lotlip_data.captioners.registry import get_default

    def config(name: str, tokens: int) -> dict[str, Any]:
        return get_default(name).to_dict() | {"max_new_tokens": tokens, "dtype": "float32"}

    base = {"run": str(work / "run"), "tars": tars, "images": load.images}
    blip = base | _model_job(config("tiny-instructblip", 256), load.seqs)  # enough for whole captions, as by default
    llava_config = config("tiny-llava", load.tokens) | {"max_model_len": 64 + load.tokens}
    llava = base | _model_job(llava_config, load.seqs)
    return {
        "ours": ("ours", llava),
        "bare_vllm": ("bare_vllm", llava),
        "ray_data_llm": ("ray_data_llm", llava | {"stages": "default"}),
        "ray_data_llm_tuned": ("ray_data_llm", llava | {"stages": "multimodal"}),
        "ray_data_llm_engine_only": ("ray_data_llm", llava | {"stages": "engine"}),
        "generate": ("generate", llava),
        **_instructblip_sides(blip),
    }


def _heavy_sides(load: Workload, work: Path, tars: list[str]) -> dict[str, tuple[str, Job]]:
    models = {
        "llava": write_llava(work / "llava", **CAPTIONING_LLAVA, dtype=HEAVY_DTYPE),
        "qwen": write_qwen(work / "qwen", HEAVY_DTYPE),
    }
    sides: dict[str, tuple[str, Job]] = {}
    half: Job = {"run": str(work / "run"), "tars": tars[: len(tars) // 2]}
    half["images"] = load.images // load.shards * len(half["tars"])
    for name, kind in (("llava", "llava"), ("qwen", "vlm")):
        config = _heavy_config(f"heavy-{name}", kind, models[name])
        config |= {"max_new_tokens": load.tokens, "min_new_tokens": load.tokens, "max_model_len": 128 + load.tokens}
        job = half | _model_job(config, load.seqs)
        sides |= {
            f"{name}_ours": ("ours", job),
            f"{name}_bare_vllm": ("bare_vllm", job),
            f"{name}_ray_data_llm": ("ray_data_llm", job | {"stages": "default"}),
        }
    config = _heavy_config("heavy-instructblip", "instructblip", write_instructblip(work / "instructblip", HEAVY_DTYPE))
    blip = {"run": str(work / "run"), "tars": tars, "images": load.images}
    return sides | _instructblip_sides(blip | _model_job(config | {"max_new_tokens": 256}, INSTRUCTBLIP_SEQS))


def _heavy_config(name: str, kind: str, model: str) -> dict[str, Any]:
    from lotlip_data.captioners.registry import get_default

    prompt = get_default("tiny-instructblip" if kind == "instructblip" else "tiny-llava").prompt
    return {"name": name, "kind": kind, "model": model, "prompt": prompt, "dtype": HEAVY_DTYPE}


def _instructblip_sides(job: Job) -> dict[str, tuple[str, Job]]:
    return {
        "instructblip_ours": ("ours", job),
        "instructblip_generate": ("generate", job),
        "instructblip_generate_16": ("generate", job | {"batch_size": 16}),
    }


def _model_job(settings: dict[str, Any], seqs: int) -> Job:
    """The part of a job that depends on the captioner.

    Args:
        settings: Those of the captioner.
        seqs: Captions at a time.
    """
    from lotlip_data.captioners.base import CaptionerConfig, TextRequest
    from lotlip_data.captioners.registry import get_kind
    from lotlip_data.manifests.checkpoints.resolve import resolve

    config = CaptionerConfig.from_dict(settings)
    kind: Any = get_kind(config.kind)
    text = kind.template.replace("{prompt}", config.prompt)
    limits = {"image": 1}
    if config.kind == "vlm":
        from lotlip_data.captioners.engines.processor_inputs import ProcessorInputs

        text = ProcessorInputs(kind, config).text(TextRequest(config, config.prompt))
        limits["video"] = 0
    return {
        "captioner": config.to_dict(),
        "checkpoint": resolve(config.model),
        "model_class": kind.model_class,
        "text": text,
        "max_num_seqs": seqs,
        "kv_cache_gib": 0.25,
        "sampling": {
            "temperature": 0.0,
            "max_tokens": config.max_new_tokens,
            "min_tokens": config.min_new_tokens,
        },
        "batch_size": seqs,
        "vllm": {
            "dtype": config.dtype,
            "max_model_len": config.max_model_len,
            "max_num_seqs": seqs,
            "kv_cache_memory_bytes": 2**28,
            "enforce_eager": True,
            "limit_mm_per_prompt": limits,
            "mm_processor_cache_gb": 0,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
            "generation_config": "vllm",
            "seed": 0,
        },
    }
