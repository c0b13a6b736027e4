"""The text that a vision-language model reads: system prompt, image and prompt in its checkpoint's chat template."""

from typing import Any

from lotlip_data.captioners.base import CaptionerConfig, ModelSpec, TextRequest
from lotlip_data.captioners.engines.prompt import apply_chat_template, checkpoint_template, doubles_start_token

FORMS = (("parts", "parts"), ("text", "parts"), ("text", "image and text"), ("text", "text"))
"""The forms of a system turn and of the user's turn. Templates differ in which they take: a list of parts, or one text.
Of those that take one text, some put the image before it by themselves."""

PART = "{'type':"
"""What a part looks like in the text of a template that takes none."""


class ChatPrompt:
    """Puts prompts into the template of a captioner: that of the settings, the checkpoint's, or the kind's.

    Attributes:
        image: Text at which the processor puts the image's tokens. Empty for BLIP's processors, which put them before
            the text by themselves.
    """

    def __init__(self, captioner: ModelSpec, config: CaptionerConfig, processor: Any, source: str):
        self._captioner, self._tokenizer, self._source = captioner, processor.tokenizer, source
        self.image = "" if hasattr(processor, "num_query_tokens") else image_text(processor)
        self._chat_template = checkpoint_template(processor)

    def render(self, request: TextRequest) -> str:
        """Return the text for one prompt, up to where the model's answer begins.

        Raises:
            ValueError: The template has no place for the image, the prompt or the system prompt.
        """
        if request.config.template is not None or not self._chat_template:
            text = self._plain(request.config, request.prompt)
        else:
            system = request.config.system if request.system is None else request.system
            text = self._chat(request.config, self._chat_template, request.prompt, system)
        start = self._tokenizer.bos_token
        if start and text.startswith(start) and doubles_start_token(text, self._tokenizer):
            text = text.removeprefix(start)
        return text

    def _plain(self, config: CaptionerConfig, prompt: str) -> str:
        if config.system or config.chat_template_kwargs:
            field = "system" if config.system else "chat_template_kwargs"
            reason = "`template` replaces it" if config.template else f"{self._source} has none"
            raise ValueError(
                f"captioner {config.name!r}: {field}: it is for a chat template, and {reason}; write the text into "
                "`template`"
            )
        template = config.template or self._captioner.template
        if (count := template.count("<image>")) != 1:
            raise ValueError(
                f"captioner {config.name!r}: its template has {count} times <image>; write it once, where the image "
                "stands"
            )
        before, after = template.split("<image>")
        return before.replace("{prompt}", prompt) + self.image + after.replace("{prompt}", prompt)

    def _chat(self, config: CaptionerConfig, template: str, prompt: str, system: str | None) -> str:
        """The chat template's text."""
        from jinja2 import TemplateError

        problem = "it leaves out the image, the prompt or the system prompt"
        for form in FORMS:
            try:
                text = apply_chat_template(
                    self._tokenizer, template, self._messages(prompt, system, *form), **config.chat_template_kwargs
                )
            except (TemplateError, TypeError, ValueError) as error:
                problem = " ".join(str(error).split())
                continue
            instructions = (prompt.strip(), (system or "").strip())
            says_all = all(instruction in text for instruction in instructions)
            shows_parts = text.count(PART) > sum(instruction.count(PART) for instruction in instructions)
            if text.count(self.image) == 1 and says_all and not shows_parts:
                return text
        raise ValueError(
            f"captioner {config.name!r}: {self._source}: its chat template does not fit a turn with one image "
            f"({problem}); set `template`, such as 'USER: <image>\\n{{prompt}} ASSISTANT:'"
        )

    def _messages(self, prompt: str, system: str | None, system_form: str, user_form: str) -> list[dict[str, Any]]:
        part = {"type": "text", "text": prompt}
        texts = {"image and text": f"{self.image}\n{prompt}", "text": prompt}
        user: Any = [{"type": "image"}, part] if user_form == "parts" else texts[user_form]
        turns = [{"role": "user", "content": user}]
        if system:
            content: Any = [{"type": "text", "text": system}] if system_form == "parts" else system
            turns.insert(0, {"role": "system", "content": content})
        return turns


def image_text(processor: Any) -> str:
    """The text that stands for an image: Gemma 3's processor has another one for the tokens that it puts there."""
    return str(getattr(processor, "boi_token", None) or getattr(processor, "image_token", "<image>"))
