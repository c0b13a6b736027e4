"""The text that a model reads: the prompt inside a template of the user, the checkpoint or the captioner's kind."""

import datetime
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, ModelSpec
from lotlip_data.manifests.settings.prompt_syntax import uses_braces

FIXED_DATE = datetime.datetime(2024, 7, 26)
"""The day that templates such as Llama 3.2's write into the prompt: a prompt must not change from day to day. It is the
day that Llama 3.1's template has."""


def prompt_text(captioner: ModelSpec, config: CaptionerConfig, prompt: str, processor: Any, source: str) -> str:
    """The prompt inside its template.

    The template of the settings comes first, then the checkpoint's chat template if the kind uses one, then the kind's.

    Args:
        captioner: The kind.
        config: Its name, and perhaps a template.
        prompt: The prompt, with the fields of a sample filled in.
        processor: The checkpoint's processor, with its tokenizer.
        source: The checkpoint, for messages.

    Raises:
        ValueError: The text has no place for the image, or begins with two start tokens.
    """
    tokenizer, chat_template = processor.tokenizer, checkpoint_template(processor)
    if config.template is None and captioner.uses_chat_template and chat_template:
        text = _chat_turn(config, prompt, processor, chat_template, source)
        if doubles_start_token(text, tokenizer):
            text = text.removeprefix(tokenizer.bos_token)
    else:
        text = (config.template or captioner.template).replace("{prompt}", prompt)
    if doubles_start_token(text, tokenizer):
        raise ValueError(
            f"captioner {config.name!r}: its template begins with {tokenizer.bos_token}, which the tokenizer adds by "
            "itself; leave it out"
        )
    _check_image_place(captioner, config, processor, text)
    return text


def _chat_turn(config: CaptionerConfig, prompt: str, processor: Any, chat_template: str, source: str) -> str:
    """The checkpoint's form of a user's turn with one image and the prompt, up to where the model's answer begins.

    Newer templates take the parts of a turn as a list, templates of text-only models one text.

    Raises:
        ValueError: The template takes neither, or leaves the image or the prompt out.
    """
    from jinja2 import TemplateError

    token = getattr(processor, "image_token", "<image>")
    parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    problem = "it leaves out the image or the prompt"
    for content in (parts, f"{token}\n{prompt}"):
        try:
            text = apply_chat_template(processor.tokenizer, chat_template, [{"role": "user", "content": content}])
        except (TemplateError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())
            continue
        if text.count(token) == 1 and prompt.strip() in text:
            return text
    raise ValueError(
        f"captioner {config.name!r}: {source}: its chat template does not fit a turn with one image ({problem}); set "
        "`template`, such as 'USER: <image>\\n{prompt} ASSISTANT:'"
    )


def no_room(
    config: CaptionerConfig, tokens: int, limit: int | None, *, is_whole: bool = False, resizes: bool = False
) -> str | None:
    """Why a caption does not fit behind an image and its prompt, and what to change; None if it fits.

    Args:
        config: The text.
        tokens: Number of tokens of image and prompt.
        limit: Number of tokens that the model, or its engine, reads and writes; None if there is no limit.
        is_whole: Whether all tokens of the caption must fit. Otherwise a `max_model_len` of the user's may cut it.
        resizes: Whether the captioner has settings that make the image smaller.
    """
    needed = config.max_new_tokens if is_whole or config.max_model_len is None else 1
    if not limit or tokens + needed <= limit:
        return None
    remedies = ["shorten the prompt"]
    if uses_braces(*config.instructions):
        remedies.append("set a smaller max_field_characters")
    if needed > 1:
        remedies.append("set a smaller max_new_tokens")
    if resizes:
        remedies.append("set max_pixels or size")
    if config.max_model_len is not None:
        remedies.append("set a larger max_model_len")
    *first, last = remedies
    remedy = f"{', '.join(first)} or {last}" if first else last
    return (
        f"image and prompt take {tokens} of {limit} tokens, and the caption needs {needed} "
        f"(max_new_tokens={config.max_new_tokens}); {remedy}"
    )


def checkpoint_template(processor: Any) -> str | None:
    """The checkpoint's chat template; the default one of a checkpoint that has several by name."""
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return str(template.get("default", next(iter(template.values()))))
    return str(template) if template else None


def apply_chat_template(tokenizer: Any, template: str, turns: list[dict[str, Any]], /, **variables: Any) -> str:
    """The text of a conversation, up to where the model's answer begins, the same every day."""
    text: str = tokenizer.apply_chat_template(
        turns,
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
        strftime_now=FIXED_DATE.strftime,
        **variables,
    )
    return text


def doubles_start_token(text: str, tokenizer: Any) -> bool:
    """Whether a text begins with two start tokens, of which the tokenizer adds one by itself."""
    start = tokenizer.bos_token_id
    return start is not None and tokenizer(text)["input_ids"][:2] == [start, start]


def _check_image_place(captioner: ModelSpec, config: CaptionerConfig, processor: Any, text: str) -> None:
    """Raise ValueError unless the image stands in the text once, where the kind's template has it."""
    token = getattr(processor, "image_token", None)
    if "<image>" in captioner.template and isinstance(token, str) and text.count(token) != 1:
        raise ValueError(
            f"captioner {config.name!r}: its template has {text.count(token)} times {token}; write it once, where the "
            "image stands"
        )
