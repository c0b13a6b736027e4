"""The parts of a converted ShareGPT4V other than its weights: config, tokenizer, image processor, chat template."""

import json
from pathlib import Path
from typing import Any

from lotlip_data.manifests.errors import UserError

IMAGE_TOKEN = "<image>"
VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, as the hub's LLaVA is: GPUs are faster on such matrices."""

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
_REQUIRED = {
    "model_type": "share4v",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "tie_word_embeddings": False,
}
_DEFAULTS = {"mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "tie_word_embeddings": False}
_REQUIRED_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
)
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
    """Return the object in a JSON file. Raises UserError if the file is missing or holds anything else."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; give the folder of a complete checkpoint") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object; fetch it again")
    return content


def read_published(source: Path) -> dict[str, Any]:
    """Return ShareGPT4V's config.json.

    Raises:
        UserError: The checkpoint is of another model, or a variant that LLaVA's layout cannot express.
    """
    file = source / "config.json"
    config = read_json(file)
    for field, required in _REQUIRED.items():
        value = config.get(field, _DEFAULTS.get(field))
        if field == "model_type" and value == "llava":
            raise UserError(
                f"{file}: this model is in the layout of LLaVA already, so it needs no conversion; caption with it: "
                f"{{preset: sharegpt4v, name: mine, model: {source}}} in the manifest's `captioners`"
            )
        if value != required:
            raise UserError(
                f"{file}: {field} is {value!r}, and only {required!r} can be converted; use ShareGPT4V as published "
                "(Lin-Chen/ShareGPT4V-7B)"
            )
    if missing := [field for field in _REQUIRED_SIZES if field not in config]:
        raise UserError(f"{file}: {', '.join(missing)} is missing; fetch it again")
    return config


def llava_config(published: dict[str, Any], tower: Path, image_token: int) -> Any:
    """Return the LlavaConfig of a ShareGPT4V checkpoint.

    Args:
        published: ShareGPT4V's config.json.
        tower: Folder of its vision tower.
        image_token: Token id of `<image>`.

    Raises:
        UserError: The tower is not a CLIP vision tower.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    clip = read_json(tower / "config.json")
    if clip.get("model_type") not in ("clip_vision_model", "clip"):
        raise UserError(f"{tower / 'config.json'}: model_type is {clip.get('model_type')!r}; give a CLIP vision tower")
    clip = clip.get("vision_config", clip)  # a complete CLIP has a text half too
    unused = {"architectures", "dtype", "model_type", "transformers_version", "_name_or_path"}
    known = CLIPVisionConfig().to_dict().keys() - unused
    vision = CLIPVisionConfig(**{field: value for field, value in clip.items() if field in known})
    vision_fields = vision.to_dict()
    language = {field: published[field] for field in _LANGUAGE_FIELDS if published.get(field) is not None}
    vocabulary = max(published["vocab_size"], image_token + 1)
    language["vocab_size"] = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig.from_dict({**language, "tie_word_embeddings": False, "model_type": "llama"}),
        image_token_index=image_token,
        image_seq_length=(int(vision_fields["image_size"]) // int(vision_fields["patch_size"])) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=published.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",  # without the class token
        tie_word_embeddings=False,
        dtype=published.get("torch_dtype") or published.get("dtype") or "float16",
        architectures=["LlavaForConditionalGeneration"],
    )


def read_tokenizer(source: Path) -> Any:
    """Return the tokenizer, with `<image>` appended as its last token if it is missing.

    ShareGPT4V's code splits the prompt at the image and encodes each part on its own, so the part after the image
    begins with a space as well. The option `legacy` does the same.

    Raises:
        UserError: The tokenizer cannot be read.
    """
    from transformers import AddedToken, LlamaTokenizer

    if not any((source / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise UserError(f"{source}: has neither tokenizer.model nor tokenizer.json; fetch one of them")
    try:
        tokenizer: Any = LlamaTokenizer.from_pretrained(source, local_files_only=True, legacy=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{source}: its tokenizer cannot be read ({reason}); fetch it again") from error
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
    return tokenizer


def write_processor(target: Path, tokenizer: Any, published: dict[str, Any], tower: Path, config: Any) -> None:
    """Write everything except the weights and config.json.

    Args:
        target: Folder of the converted checkpoint.
        tokenizer: From `read_tokenizer`.
        published: ShareGPT4V's config.json.
        tower: Folder of the vision tower, whose image processor is used.
        config: From `llava_config`.
    """
    tokenizer.save_pretrained(target)
    (target / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    image = read_json(tower / "preprocessor_config.json")
    image.pop("feature_extractor_type", None)
    image |= {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
    if published.get("image_aspect_ratio") == "pad":  # pad to a square in the mean colour instead of cropping
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
