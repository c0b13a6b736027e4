"""tokenizer.json of an export makes the token ids of the model."""

import pytest
from tokenizers import Tokenizer

from lotlip_data.training.data.text_forms import prepare
from lotlip_data.training.export.text_files import describe_tokenizer, split_at_full_stops, write_tokenizer
from tests.training.models import reference

TEXTS = [
    *reference.META["texts"],
    "A red. A blue thing. Dr. Smith went 3.5 m.",
    "a [SEP] b",
    "a [sep] B. [Sep] c",
    " &amp;lt;b. x",
    "\u4e2d\u6587. \u4e2d.\u6587\u3002",
    "x. " * 100 + "x",
    "[CLS] a. [MASK] b",
    "...",
    "Hello.Good. I",
]


@pytest.mark.parametrize("corners", [0, 2])
def test_prepared_texts_get_the_ids_of_the_model(corners, tmp_path):
    tokenizer = reference.tokenizer(corners, context_length=512)
    write_tokenizer(tmp_path, describe_tokenizer(tokenizer), tokenizer)
    written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [written.encode(prepare(text, "authors", "[SEP]")).ids for text in TEXTS]
    assert ids == tokenizer.encode(TEXTS).ids


def test_plain_texts_get_the_ids_of_the_model_in_open_clip(tmp_path):
    """But white space after a full stop that is no single space: open_clip cleans it away before the tokenizer."""
    from open_clip.tokenizer import HFTokenizer

    tokenizer = reference.tokenizer(0)
    write_tokenizer(tmp_path, split_at_full_stops(describe_tokenizer(tokenizer), "[SEP]"), tokenizer)
    theirs = HFTokenizer(str(tmp_path), context_length=tokenizer.context_length)
    regular = [text for text in TEXTS if " ".join(text.split()) == text]
    assert len(regular) > len(TEXTS) // 2
    assert theirs(regular).tolist() == tokenizer(regular).tolist()
    for text in ("a.\nb", "a.\tb", "a. "):
        assert theirs([text]).tolist() != tokenizer([text]).tolist()
