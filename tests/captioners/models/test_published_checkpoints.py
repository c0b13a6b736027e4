"""The published 7B checkpoints by name and shape: their tensors and the models' parameters match one to one.

tests/goldens/published/ describes their files. Tensors are on torch's `meta` device, so that they take no memory. They
are mapped, checked and loaded by the code for real files.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.convert import sharegpt4v
from lotlip_data.captioners.convert.processor import llava_config, read_published
from lotlip_data.captioners.convert.sharegpt4v import hub_name, llava_shapes
from lotlip_data.captioners.engines import vllm_prompt_embeds
from lotlip_data.captioners.registry import load_engine
from lotlip_data.captioners.sizing import language_dtype
from lotlip_data.manifests.checkpoints.weights import differences, model_shapes
from tests.captioners import tiny_checkpoints
from tests.support.published import published

IMAGE_TOKEN = 32000  # Vicuna's tokenizer has 32,000 tokens; `<image>` is added


def on_meta(shapes, dtype=torch.float16):
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


@pytest.fixture
def load(monkeypatch):
    """`load(config, shapes)`: the problems that transformers reports when it loads such files."""
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda: True)

    def from_pretrained(config, shapes):
        cls = getattr(transformers, config.architectures[0])
        _, loading_info = cls.from_pretrained(
            None,
            config=config,
            state_dict=on_meta(shapes),
            device_map={"": "meta"},
            dtype=torch.float16,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        return {kind: names for kind, names in loading_info.items() if names}

    return from_pretrained


@pytest.fixture
def read_config(tmp_path):
    """`read_config(golden)`: the published config.json, read by AutoConfig."""

    def read(golden):
        (tmp_path / "config.json").write_text(json.dumps(golden["config"]))
        return AutoConfig.from_pretrained(tmp_path)

    return read


@pytest.fixture
def plan_conversion(tmp_path, monkeypatch):
    """`plan_conversion(model shapes, tower shapes)`: LlavaConfig, shards, number of stray tensors, resulting shapes."""

    def run(shapes, tower_shapes):
        model, tower = tmp_path / "model", tmp_path / "tower"
        for folder, name in ((model, "sharegpt4v-7b"), (tower, "sharegpt4v-vit-large336-l12")):
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(published(name)[0]["config"]))
        half = len(shapes) // 2
        contents = {
            "pytorch_model-00001-of-00002.bin": dict(itertools.islice(shapes.items(), half)),
            "pytorch_model-00002-of-00002.bin": dict(itertools.islice(shapes.items(), half, None)),
            "pytorch_model.bin": tower_shapes,
        }
        monkeypatch.setattr(sharegpt4v, "read_weights", lambda file: on_meta(contents[file.name]))
        files = [Path(name) for name in contents]
        config = llava_config(read_published(model), tower, IMAGE_TOKEN)
        shards, stray = sharegpt4v.plan(files[:2], files[2:])
        return config, shards, stray, sharegpt4v.shapes(shards, config.text_config.vocab_size)

    return run


def test_llavas_tensors_match_its_parameters_one_to_one(load, read_config):
    golden, shapes = published("llava-1.5-7b-hf")
    config = read_config(golden)
    assert load(config, shapes) == {}
    assert differences(llava_shapes(config), shapes) == []
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 7_063_427_072


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_the_check_and_the_loading_report_a_wrong_tensor(change, load, read_config):
    golden, shapes = published("llava-1.5-7b-hf")
    name = "multi_modal_projector.linear_2.bias"
    if change == "missing":
        del shapes[name]
    else:
        shapes[name if change == "shape" else f"{name}.more"] = (7,)
    assert len(load(read_config(golden), shapes)) == 1
    assert len(differences(llava_shapes(read_config(golden)), shapes)) == 1


def test_sharegpt4vs_tensors_add_up_to_its_published_size():
    """All are float16 except the rotary frequencies, which that version of transformers saved in float32."""
    golden, shapes = published("sharegpt4v-7b")
    sizes = {name: torch.Size(shape).numel() * (4 if "inv_freq" in name else 2) for name, shape in shapes.items()}
    assert sum(sizes.values()) == golden["total_size"]


def test_sharegpt4v_converts_to_the_names_and_shapes_of_llava(plan_conversion, load):
    """Each published tensor has one target or is left out on purpose, and the result has LLaVA's layout."""
    shapes, tower = published("sharegpt4v-7b")[1], published("sharegpt4v-vit-large336-l12")[1]
    config, shards, stray, converted = plan_conversion(shapes, tower)
    assert stray == 0
    used = [old for shard in shards for old in shard.names.values()]
    left_out = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(32)]
    left_out.append("vision_model.embeddings.position_ids")
    assert sorted([*used, *left_out]) == sorted([*shapes, *tower])
    assert converted == published("llava-1.5-7b-hf")[1]
    assert differences(llava_shapes(config), converted) == []
    assert load(config, converted) == {}
    assert (config.text_config.vocab_size, config.image_token_id, config.image_seq_length) == (32064, 32000, 576)


def test_sharegpt4v_converts_in_whichever_layout_the_tower_was_saved(plan_conversion):
    shapes, tower = published("sharegpt4v-7b")[1], published("sharegpt4v-vit-large336-l12")[1]
    plain = plan_conversion(shapes, tower)[3]
    tower.pop("vision_model.embeddings.position_ids")
    assert plan_conversion(shapes, tower)[3] == plain
    renamed = {name.removeprefix("vision_model."): shape for name, shape in tower.items()}
    assert plan_conversion(shapes, renamed)[3] == plain
    strays = {f"model.vision_tower.vision_tower.{name}": shape for name, shape in tower.items()}
    assert plan_conversion(shapes | strays, tower)[2:] == (len(strays), plain)


def test_hub_names_and_transformers_names_match_one_to_one(read_config):
    config = read_config(published("llava-1.5-7b-hf")[0])
    names = model_shapes("LlavaForConditionalGeneration", config)
    assert len({hub_name(name) for name in names}) == len(names)


def test_instructblips_tensors_match_its_parameters_one_to_one(load, read_config):
    golden, shapes = published("instructblip-vicuna-7b")
    config = read_config(golden)
    assert load(config, shapes) == {}
    parameters = shapes.keys() - {name for name in shapes if name.endswith(("inv_freq", "position_ids"))}
    assert sum(torch.Size(shapes[name]).numel() for name in parameters) == 7_913_726_720


def test_instructblips_image_half_loads_all_its_weights(load, read_config):
    """Loaded as the vLLM engine does: of the language model, only the token embeddings."""
    golden, shapes = published("instructblip-vicuna-7b")
    config = read_config(golden)
    config.text_config.num_hidden_layers = 0
    problems = load(config, shapes)
    assert "missing_keys" not in problems and "mismatched_keys" not in problems
    assert all(name.startswith("language_model.model.layers.") for name in problems["unexpected_keys"])


def test_instructblips_language_model_is_a_complete_stock_llama(tmp_path, monkeypatch, read_config):
    """The published files are float32, and config.json says float16 for the language model, as Vicuna's are."""
    golden, shapes = published("instructblip-vicuna-7b")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(golden["config"]))
    files = [checkpoint / f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)]
    parts = {file.name: dict(list(shapes.items())[number::4]) for number, file in enumerate(files)}
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in files:
        file.touch()
    written = {}
    monkeypatch.setattr(vllm_prompt_embeds, "read_weights", lambda file: on_meta(parts[file.name], torch.float32))
    monkeypatch.setattr(vllm_prompt_embeds, "write_weights", lambda file, weights: written.update(weights))
    options, cache, dtype = {"revision": None}, str(tmp_path / "cache"), language_dtype(read_config(golden))
    folder = vllm_prompt_embeds.export_language_model(str(checkpoint), options, cache, dtype)
    config = AutoConfig.from_pretrained(folder)
    assert config.dtype == torch.float16 and {weight.dtype for weight in written.values()} == {torch.float16}
    assert config.architectures == ["LlamaForCausalLM"]
    written_shapes = {name: tuple(weight.shape) for name, weight in written.items()}
    assert written_shapes == model_shapes("LlamaForCausalLM", config)
    indexed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert indexed.keys() == written.keys()
    exported = {name for name in shapes if vllm_prompt_embeds.stock_name(name) is not None}
    halves = ("vision_model.", "qformer.", "query_tokens", "language_projection.")
    others = {name for name in shapes if name.startswith(halves) or name.endswith("inv_freq")}
    assert exported | others == shapes.keys() and not exported & others


@pytest.fixture
def quirky(tmp_path):
    """A plain InstructBLIP and one with the quirks of the published files, which must not change captions.

    The hub's processor_config.json names InstructBlipVideoProcessor; Vicuna v1.1's config names <s> as the end token.
    """
    plain = tiny_checkpoints.write_instructblip(tmp_path / "plain", end_bias=2.0)
    shutil.copytree(plain, tmp_path / "quirky")
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    config = json.loads((plain / "config.json").read_text())
    for file, change in (
        ("processor_config.json", {"processor_class": "InstructBlipVideoProcessor"}),
        ("generation_config.json", ids),
        ("config.json", {"text_config": config["text_config"] | ids}),
    ):
        changed = json.loads((plain / file).read_text()) | change
        (tmp_path / "quirky" / file).write_text(json.dumps(changed))
    return plain, tmp_path / "quirky"


def captions_of(model, engine, images, caption_all, **options):
    config = CaptionerConfig(name="x", kind="instructblip", model=str(model), max_new_tokens=24, dtype="float32")
    loaded = load_engine(config, engine, **options)
    captions = caption_all(loaded, images)
    loaded.close()
    return captions


def test_instructblip_works_although_its_files_name_a_video_processor_and_a_wrong_end_token(
    quirky, scenes, caption_all
):
    plain, same = (captions_of(model, "transformers", scenes(16), caption_all) for model in quirky)
    assert plain == same
    assert "stop" in {caption.finish_reason for caption in plain}


@pytest.mark.slow
def test_instructblip_with_the_published_quirks_works_in_vllm_too(quirky, scenes, caption_all, tmp_path):
    expected = captions_of(quirky[0], "transformers", scenes(16), caption_all)
    assert captions_of(quirky[1], "vllm", scenes(16), caption_all, cache_dir=str(tmp_path / "cache")) == expected
