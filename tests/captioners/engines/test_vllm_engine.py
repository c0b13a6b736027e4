"""vLLM on the CPU: a request, an engine process or an actor that fails affects only what it must."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, EngineDead, EngineOptions
from lotlip_data.captioners.engines.preprocessing import Preprocessor
from lotlip_data.captioners.load_errors import LoadError
from lotlip_data.captioners.registry import get_default, get_kind, load_engine
from lotlip_data.captioners.sizing import Gpu
from tests.support.processes import title

pytestmark = pytest.mark.slow
LENGTH = 24


def engine_processes(parent):
    return [process for process in psutil.Process(parent).children(recursive=True) if is_engine(process)]


def is_engine(process):
    return "EngineCore" in title(process)


@pytest.fixture(scope="module")
def checkpoint(random_llava, tmp_path_factory):
    """A checkpoint whose own generation settings would change every caption if they were used.

    Its weights have the names that transformers 5 writes, not those of the hub.
    """
    folder = tmp_path_factory.mktemp("vllm") / "sampling"
    shutil.copytree(random_llava, folder)
    file = folder / "generation_config.json"
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("vision_tower.vision_model.", "vision_tower."): weights[name] for name in weights}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 3.0, "max_new_tokens": 5}
    file.write_text(json.dumps(json.loads(file.read_text()) | sampling))
    return CaptionerConfig(name="x", kind="llava", model=str(folder), max_new_tokens=LENGTH)


def test_engine_processes_are_spawned_because_a_fork_cannot_use_a_gpu_that_its_parent_has_used():
    """As `plan --time` does, this script looks for GPUs before vLLM is imported. Nothing else sets the method."""
    script = (
        "import os, torch; torch.cuda.is_available(); "
        "import lotlip_data.captioners.engines.vllm_engine; "
        "from vllm.utils.system_utils import get_mp_context; print(get_mp_context().get_start_method())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"}
    answer = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert answer.stdout.split()[-1] == "spawn"


def test_arguments_follow_from_the_gpu_that_is_there(random_instructblip, random_llava, monkeypatch):
    """The language model's precision, the captions that fit, and FP8 outside the image tower."""
    from lotlip_data.captioners.engines import devices, vllm_engine

    gpu = Gpu("NVIDIA H100 80GB HBM3", 84_930_000_000, (9, 0))
    monkeypatch.setattr(devices, "current_gpu", lambda: gpu)

    def arguments(name, model, **options):
        config = get_default(name).replace(model=model, max_new_tokens=8)
        return vllm_engine.engine_args(config, EngineOptions(**options), Preprocessor(get_kind(config.kind), config))

    plain, fp8 = arguments("llava", random_llava), arguments("llava-fp8", random_llava)
    assert (plain.dtype, plain.max_num_seqs) == ("float32", 1024)
    assert (plain.quantization, plain.kv_cache_dtype) == (None, "auto")
    assert (fp8.quantization, fp8.kv_cache_dtype) == ("fp8_per_channel", "fp8")
    assert plain.quantization_config is None and fp8.quantization_config.linear is not None
    layers = {
        "vision_tower.vision_model.encoder.layers.0.self_attn.qkv_proj": False,
        "multi_modal_projector.linear_1": False,
        "language_model.model.layers.0.self_attn.qkv_proj": True,
        "language_model.model.layers.0.mlp.down_proj": True,
    }
    assert {name: is_quantized(fp8.quantization_config, name) for name in layers} == layers
    explicit = arguments("instructblip", random_instructblip, max_num_seqs=7)
    assert explicit.max_num_seqs == 7


def is_quantized(arguments, layer):
    """Whether vLLM quantises a linear layer of this name when it loads the model."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig

    config = OnlineQuantizationConfig(arguments)
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    return config.resolve_quant_method_cls(LinearBase, layer) is not None


def test_failures_affect_only_what_they_must(checkpoint, scenes, caption_all, monkeypatch):
    """One engine serves all cases, from the smallest damage to the largest."""
    plain = load_engine(checkpoint, "transformers")
    expected = caption_all(plain, scenes(16))
    plain.close()
    engine = load_engine(checkpoint, "vllm")
    capacity = engine.capacity
    assert (capacity.dtype, capacity.device, capacity.sequences) == ("float32", "the CPU", 64)
    assert capacity.cache_tokens and capacity.cache_tokens > capacity.sequences * LENGTH
    assert caption_all(engine, scenes(16)) == expected

    # An image that cannot be preprocessed, and a request that vLLM rejects: each fails alone.
    rejected = scenes(16)[7]
    prepare, build_request, pixels_of_rejected = engine.prepare, engine._request, [None]

    def remember(image):
        pixels = prepare(image)
        if image is rejected:
            pixels_of_rejected[0] = pixels
        return pixels

    async def request(pixels):
        built = await build_request(pixels)
        return built | {"prompt_token_ids": [10**6]} if pixels is pixels_of_rejected[0] else built

    monkeypatch.setattr(engine, "prepare", remember)
    monkeypatch.setattr(engine, "_request", request)
    images = [*scenes(16)[:7], rejected, Image.new("RGB", (2, 2000)), *scenes(16)[8:]]
    results = caption_all(engine, images)
    assert isinstance(results[7], CaptionError) and "vLLM" in str(results[7])
    assert isinstance(results[8], CaptionError) and "2×2000 pixels" in str(results[8])
    assert [*results[:7], *results[9:]] == [*expected[:7], *expected[8:]]

    # The engine's process is killed: current and later calls raise EngineDead.
    (process,) = engine_processes(os.getpid())
    process.send_signal(signal.SIGKILL)
    assert all(isinstance(result, EngineDead) for result in caption_all(engine, scenes(16)))
    assert all(isinstance(result, EngineDead) for result in caption_all(engine, scenes(2)))
    engine.close()
    engine.close()
    assert all(isinstance(result, EngineDead) for result in caption_all(engine, scenes(2)))


OWNER = """
import sys, time
from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.load_errors import LoadError
from lotlip_data.captioners.registry import get_default, get_kind, load_engine
from lotlip_data.captioners.sizing import Gpu
if __name__ == "__main__":
    engine = load_engine(CaptionerConfig(name="x", kind="llava", model=sys.argv[1], max_new_tokens=8), "vllm")
    print("ready", flush=True)
    sys.stdin.readline()
    engine.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_the_engines_process_ends_with_close_and_with_its_owner(end, random_llava, tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, script, random_llava], **pipes) as owner:
        try:
            assert owner.stdout.readline() == "ready\n"
            processes = engine_processes(owner.pid)
            assert processes
            if end == "close":
                owner.stdin.write("\n")
                assert owner.stdout.readline() == "closed\n"
            else:
                owner.kill()
            deadline = time.monotonic() + 120
            while any(map(is_engine, processes)):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            owner.kill()


def test_the_cause_that_vllm_gives_in_this_process_or_in_its_own_is_in_the_message(random_llava, tmp_path):
    config = CaptionerConfig(name="mine", kind="llava", model=str(random_llava), max_new_tokens=LENGTH)
    with pytest.raises(LoadError, match=r"captioner 'mine': .* does not load: .*awq"):
        load_engine(config.replace(quantization="awq"), "vllm")

    folder = tmp_path / "other"
    shutil.copytree(random_llava, folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("multi_modal_projector.", "my_projector."): weights[name] for name in weights}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"captioner 'mine': .*/other does not load: .*my_projector") as caught:
        load_engine(config.replace(model=str(folder)), "vllm")
    notes = "".join(getattr(caught.value.__cause__.__cause__, "__notes__", []))
    assert "Traceback" in notes and "my_projector" in notes
