"""The tokenizer of a LoTLIP: texts in the form in which the model was trained, truncated at its context length."""

from typing import Any

import ftfy  # noqa: F401 - text_forms.py imports it; here transformers finds it, and names it where it is missing
from transformers import PreTrainedTokenizerFast

from lotlip_data.training.data.text_forms import prepare


class LoTLIPTokenizer(PreTrainedTokenizerFast):
    """Settings of tokenizer_config.json: `text_form`, and `text_padding` (`longest` or `max_length`)."""

    def __call__(self, text: Any = None, text_pair: Any = None, **options: Any) -> Any:
        """As any tokenizer, but texts are truncated and padded unless the options say otherwise."""
        defaults = {"padding": self.init_kwargs["text_padding"], "truncation": True}
        return super().__call__(text, text_pair, **{**defaults, **options})

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> Any:  # type: ignore[override]
        if text_pair is not None or options.get("is_split_into_words"):
            raise ValueError("this tokenizer takes texts, no pairs of texts and no lists of words")
        return super()._encode_plus(self._prepare(text), **options)

    def _prepare(self, text: Any) -> Any:
        if isinstance(text, str):
            return prepare(text, self.init_kwargs["text_form"], str(self.sep_token))
        return [self._prepare(each) for each in text]
