"""The language model exported from an InstructBLIP checkpoint is complete and exact, and is exported once."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, InstructBlipForConditionalGeneration, T5Config

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.engines import vllm_prompt_embeds
from lotlip_data.captioners.engines.vllm_prompt_embeds import export_language_model, leave_for_vllm
from lotlip_data.captioners.registry import load_engine
from tests.captioners.tiny_checkpoints import VOCABULARY, llama, write_instructblip

LOCAL = {"revision": None, "local_files_only": True}


@pytest.fixture
def checkpoint(random_instructblip, tmp_path):
    """A checkpoint of two weight files, like the published one of several, with the language model in both."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(random_instructblip, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {}
    for position, name in enumerate(sorted(weights)):
        files.setdefault(f"model-0000{position % 2 + 1}-of-00002.safetensors", {})[name] = weights[name]
    for file, part in files.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_export_is_a_stock_checkpoint_with_every_weight_unchanged(checkpoint, tmp_path):
    folder = export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))
    stock, loading_info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    whole = InstructBlipForConditionalGeneration.from_pretrained(checkpoint).language_model
    assert not loading_info["missing_keys"] and not loading_info["unexpected_keys"]
    assert type(stock) is type(whole)
    expected = whole.state_dict()
    assert stock.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in stock.state_dict().items())


def test_the_export_has_the_precision_that_is_asked_for_and_is_never_widened(checkpoint, tmp_path, monkeypatch):
    """In several parts, since few converted weights may be in memory at a time."""
    monkeypatch.setattr(vllm_prompt_embeds, "MAX_COPIED_BYTES", 20_000)
    whole = InstructBlipForConditionalGeneration.from_pretrained(checkpoint).language_model.state_dict()
    folders = {}
    for dtype in ("auto", "float32", "float16", "bfloat16"):
        folders[dtype] = export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"), dtype)
        stock = AutoModelForCausalLM.from_pretrained(folders[dtype], dtype="auto")
        expected = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        assert stock.config.dtype == expected
        assert all(torch.equal(weight, whole[name].to(expected)) for name, weight in stock.state_dict().items())
    assert len(list(folders["float16"].glob("*.safetensors"))) > 2
    assert folders["auto"] == folders["float32"] and len(set(folders.values())) == 3
    narrow = export_language_model(str(in_float16(checkpoint, tmp_path)), LOCAL, str(tmp_path / "cache"), "float32")
    assert AutoModelForCausalLM.from_pretrained(narrow, dtype="auto").config.dtype == torch.float16


def in_float16(checkpoint, tmp_path):
    """The checkpoint, saved in float16."""
    folder = tmp_path / "half"
    shutil.copytree(checkpoint, folder)
    for file in folder.glob("*.safetensors"):
        save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def test_the_export_is_made_once_and_again_when_the_checkpoint_changes(checkpoint, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    folder = export_language_model(str(checkpoint), LOCAL, cache)
    with monkeypatch.context() as patch:
        patch.setattr(vllm_prompt_embeds, "write_weights", lambda *args, **kwargs: pytest.fail("exported again"))
        assert export_language_model(str(checkpoint), LOCAL, cache) == folder
    file = next(checkpoint.glob("*00001*.safetensors"))
    save_file({name: weight * 2 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    assert export_language_model(str(checkpoint), LOCAL, cache) != folder


def test_concurrent_exports_write_once_and_give_one_complete_folder(checkpoint, tmp_path, monkeypatch):
    cache, writes, write = str(tmp_path / "cache"), [], vllm_prompt_embeds.write_weights

    def count(*arguments, **settings):
        writes.append(arguments)
        return write(*arguments, **settings)

    monkeypatch.setattr(vllm_prompt_embeds, "write_weights", count)
    export_language_model(str(checkpoint), LOCAL, str(tmp_path / "alone"))
    expected = len(writes)
    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: export_language_model(str(checkpoint), LOCAL, cache), range(8)))
    assert len(folders) == 1 and len(writes) == 2 * expected
    assert [path.name for path in Path(cache, "language_models").iterdir()] == [folders.pop().name]


def test_what_a_killed_export_left_is_removed(checkpoint, tmp_path):
    name = export_language_model(str(checkpoint), LOCAL, str(tmp_path / "alone")).name
    left = tmp_path / "cache" / "language_models" / f".{name}-a1b2"
    left.mkdir(parents=True)
    (left / "model-00001.safetensors").write_bytes(b"half a file")
    export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))
    assert [path.name for path in left.parent.iterdir()] == [name]


def test_a_failed_export_leaves_no_files(checkpoint, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vllm_prompt_embeds, "write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "language_models").iterdir())


def test_bin_files_are_exported_too(checkpoint, tmp_path):
    expected = export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))
    only_bin = tmp_path / "bin"
    only_bin.mkdir()
    (only_bin / "config.json").write_text((checkpoint / "config.json").read_text())
    weight_map = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        name = f"pytorch_{file.stem}.bin"
        old = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
        weights = load_file(file) | (old if "00001" in name else {})
        torch.save(weights, only_bin / name)
        weight_map |= dict.fromkeys(weights, name)
    (only_bin / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    folder = export_language_model(str(only_bin), LOCAL, str(tmp_path / "cache"))
    for file in expected.glob("*.safetensors"):
        written = load_file(folder / f"pytorch_{file.name}")
        assert written.keys() == load_file(file).keys()
        assert all(torch.equal(weight, written[name]) for name, weight in load_file(file).items())


def test_a_checkpoint_that_lacks_a_weight_is_rejected(checkpoint, tmp_path):
    for file in checkpoint.glob("*.safetensors"):
        weights = load_file(file)
        if weights.pop("language_model.model.norm.weight", None) is not None:
            save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: 1 weights are missing, such as model.norm.weight; fetch the"):
        export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "language_models").iterdir())


def test_a_language_model_with_one_matrix_for_input_and_output_is_whole_without_the_second(tmp_path):
    folder = write_instructblip(tmp_path / "tied", text_config=llama(tied=True))
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    exported = export_language_model(str(folder), LOCAL, str(tmp_path / "cache"))
    stock, loading_info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not loading_info["missing_keys"]
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight


def test_a_language_model_with_an_encoder_is_refused_for_vllm_before_anything_is_loaded(tmp_path):
    flan = T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=32, d_ff=64, num_layers=1, num_heads=2)
    folder = write_instructblip(tmp_path, text_config=flan)
    (folder / "model.safetensors").unlink()
    config = CaptionerConfig(name="x", kind="instructblip", model=str(folder))
    with pytest.raises(ValueError, match=r"has an encoder, which vLLM does not run; use engine='transformers'"):
        load_engine(config, "vllm")


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_a_quantised_checkpoint_is_rejected_with_the_fix(engine, checkpoint):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is quantised, and its language model cannot be exported for vLLM; use"):
        load_engine(CaptionerConfig(name="x", kind="instructblip", model=str(checkpoint)), engine)


def test_a_quantization_that_the_checkpoint_lacks_is_rejected(checkpoint):
    config = CaptionerConfig(name="x", kind="instructblip", model=str(checkpoint), quantization="awq_marlin")
    message = "captioner 'x': quantization='awq_marlin': InstructBLIP's checkpoint is not quantised; use one that"
    with pytest.raises(ValueError, match=message):
        load_engine(config, "vllm")


def test_the_hub_download_has_the_revision_and_one_weight_format(checkpoint, tmp_path, monkeypatch):
    downloads = []

    def download(model, *, revision, allow_patterns):
        downloads.append((model, revision, allow_patterns))
        return str(checkpoint if both_formats or "*.bin" in allow_patterns else tmp_path / "nothing")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = {"revision": "a1b2c3", "local_files_only": False}
    for both_formats in (True, False):  # noqa: B007 - `download` reads it
        export_language_model("Salesforce/instructblip-vicuna-7b", options, str(tmp_path / "cache"))
    safetensors, weights = ["*.json", "*.safetensors"], ["*.json", "*.bin"]
    assert downloads == [
        ("Salesforce/instructblip-vicuna-7b", "a1b2c3", p) for p in (safetensors, safetensors, weights)
    ]


def test_a_model_that_is_not_decoder_only_or_lacks_weight_files_is_rejected(checkpoint, tmp_path):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps(config | {"text_config": {"model_type": "t5"}, "use_decoder_only_language_model": False})
    )
    with pytest.raises(ValueError, match="its language model, t5, is not decoder-only"):
        export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))
    for weights in checkpoint.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=r"is one of several|model\.safetensors\.index\.json names .* is missing"):
        export_language_model(str(checkpoint), LOCAL, str(tmp_path / "cache"))


def test_an_image_half_that_takes_the_whole_share_of_the_engine_is_named():
    config = CaptionerConfig(name="x", kind="instructblip", model="x")
    options = EngineOptions(gpu_memory_utilization=0.2)
    assert leave_for_vllm(config, options, 0.05).gpu_memory_utilization == 0.15
    with pytest.raises(ValueError, match=r"captioner 'x': ViT-g and Q-Former take 25% .*use 20% in all; raise"):
        leave_for_vllm(config, options, 0.25)
