"""What a converted ShareGPT4V has besides its weights: configuration, tokenizer, image processor, chat template."""

import json
from pathlib import Path
from typing import Any

from lotlip_data.manifests.errors import UserError

IMAGE_TOKEN = "<image>"
VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to this, as the hub's LLaVA is: matrices of such sizes are quicker on GPUs."""

_LANGUAGE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_WANTED = {
    "model_type": "share4v",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "tie_word_embeddings": False,
}
_ABSENT_MEANS = {"mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "tie_word_embeddings": False}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
_CHAT_TEMPLATE = """\
A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and \
polite answers to the human's questions.
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ ' USER: ' }}{% else %}{{ ' ' + message['role'] | upper + ': ' }}{% endif %}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}
{%- endif %}
{%- if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is no such file, or something else in it."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; give the folder of a whole checkpoint") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object; fetch it again")
    return found


def read_published(source: Path) -> dict[str, Any]:
    """ShareGPT4V's config.json. Raises UserError for another model, or a variant that LLaVA's layout cannot express."""
    file = source / "config.json"
    config = read_json(file)
    for field, wanted in _WANTED.items():
        value = config.get(field, _ABSENT_MEANS.get(field))
        if value != wanted:
            raise UserError(
                f"{file}: {field} is {value!r}, and only {wanted!r} can be converted; ShareGPT4V as published "
                "(Lin-Chen/ShareGPT4V-7B) has that"
            )
    if missing := [field for field in _SIZES if field not in config]:
        raise UserError(f"{file}: {', '.join(missing)} must be given; fetch it again")
    return config


def llava_config(published: dict[str, Any], tower: Path, image_token: int) -> Any:
    """The LlavaConfig of a ShareGPT4V. tower: folder of its vision tower. image_token: id of `<image>`.

    Raises UserError for a tower that is not CLIP's.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    clip = read_json(tower / "config.json")
    if clip.get("model_type") not in ("clip_vision_model", "clip"):
        raise UserError(f"{tower / 'config.json'}: model_type is {clip.get('model_type')!r}; give a CLIP vision tower")
    clip = clip.get("vision_config", clip)  # a whole CLIP has a text half too
    known = CLIPVisionConfig().to_dict().keys() - {"architectures", "dtype", "transformers_version", "_name_or_path"}
    vision = CLIPVisionConfig(**{field: value for field, value in clip.items() if field in known - {"model_type"}})
    sizes = vision.to_dict()
    language = {field: published[field] for field in _LANGUAGE_FIELDS if published.get(field) is not None}
    vocabulary = max(published["vocab_size"], image_token + 1)
    language["vocab_size"] = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig.from_dict({**language, "tie_word_embeddings": False, "model_type": "llama"}),
        image_token_index=image_token,
        image_seq_length=(int(sizes["image_size"]) // int(sizes["patch_size"])) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=published.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",  # without the class token
        tie_word_embeddings=False,
        dtype=published.get("torch_dtype") or published.get("dtype") or "float16",
        architectures=["LlavaForConditionalGeneration"],
    )


def read_tokenizer(source: Path) -> Any:
    """The tokenizer, with `<image>` as its last token if it had none.

    ShareGPT4V's code cuts the prompt at the image and encodes each part by itself, so the part after the image begins
    with a space, too: that is what `legacy` does. Raises UserError if it cannot be read.
    """
    from transformers import AddedToken, LlamaTokenizer

    if not any((source / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise UserError(f"{source}: has neither tokenizer.model nor tokenizer.json; fetch one too")
    try:
        tokenizer: Any = LlamaTokenizer.from_pretrained(source, local_files_only=True, legacy=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{source}: its tokenizer cannot be read ({reason}); fetch it again") from error
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
    return tokenizer


def write_processor(target: Path, tokenizer: Any, published: dict[str, Any], tower: Path, config: Any) -> None:
    """Writes all but the weights and config.json: tokenizer, processors, chat template and generation settings."""
    tokenizer.save_pretrained(target)
    (target / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    image = read_json(tower / "preprocessor_config.json")
    image.pop("feature_extractor_type", None)
    image |= {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
    if published.get("image_aspect_ratio") == "pad":  # to a square, in the mean colour, rather than cropping to one
        image |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    _write_json(target / "preprocessor_config.json", image)
    _write_json(
        target / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "num_additional_image_tokens": 1,
        },
    )
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(target / "generation_config.json", {name: published[name] for name in ids if name in published})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
