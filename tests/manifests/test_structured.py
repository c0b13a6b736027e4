"""The setting `structured`: what is refused, what a text must be, and what becomes of the keys of a JSON object."""

import json

import pytest

from lotlip_data.captioners.base import Caption, CaptionerConfig
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.structured import StructuredOutput, column_values

SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "count": {"type": "integer"},
        "score": {"type": ["number", "null"]},
        "is_photo": {"type": "boolean"},
        "style": {"enum": ["flat", "deep"]},
    },
    "required": ["subject"],
}
CONFIG = CaptionerConfig(name="facts", kind="vlm", model="m")


def flags(structured, text, finish_reason="stop"):
    return find_flags(Caption(text, finish_reason, 1), CONFIG.replace(structured=structured))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`structured`: says nothing; give one of json_schema, regex and choice"),
        ({"regex": "a", "choice": ["a"]}, "`structured`: regex and choice exclude each other; give one of"),
        ({"regex": "(a"}, r"`structured.regex`: is no regular expression: missing \), unterminated subpattern"),
        ({"regex": ""}, "`structured.regex`: is empty"),
        ({"choice": []}, "`structured.choice`: must be a list of texts that are not blank"),
        ({"choice": ["a", " b"]}, "`structured.choice`: must be a list of texts that are not blank"),
        ({"choice": ["a", "b", "a"]}, "`structured.choice`: 'a' is named twice"),
        ({"json_schema": {"type": "objekt"}}, r"`structured.json_schema`: is no JSON Schema: \$.type: 'objekt' is not"),
        ({"json_schema": {"properties": ["a"]}}, r"is no JSON Schema: \$.properties: \['a'\] is not of type 'object'"),
        ({"json_schema": {"$ref": "https://x.example/s"}}, r"\$ref: 'https://x.example/s' is not in the schema"),
        ({"json_schema": {"$ref": "#/$defs/a"}}, r"\$ref: '#/\$defs/a' is not in the schema; define it under \$defs"),
        ({"json_schema": {"pattern": "[a"}}, r"is no JSON Schema: \$.pattern: '\[a' is not a 'regex'"),
        ({"json_schema": {"patternProperties": {"(": {}}}}, r"is no JSON Schema: \$.patternProperties: '\(' is not a"),
        ({"regex": "a", "columns": ["a"]}, "`columns`: regex has no keys; columns need json_schema"),
        ({"json_schema": {"type": "array"}, "columns": ["a"]}, "`columns`: json_schema must have the type object and"),
        ({"json_schema": SCHEMA, "columns": ["sujet"]}, "`columns`: json_schema has no property 'sujet'; it has 'subj"),
        ({"json_schema": SCHEMA, "columns": ["tags", "tags"]}, "`columns`: 'tags' is named twice"),
        ({"schema": {}}, r"`structured.schema`: .*"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(settings, message):
    with pytest.raises(UserError, match=message):
        CONFIG.replace(structured=settings)


@pytest.mark.parametrize("name", ["a b", "été", "x_sub", "flags", "", "a" * 65])
def test_a_key_that_cannot_be_in_a_columns_name_is_refused(name):
    schema = {"type": "object", "properties": {name: {"type": "string"}}}
    StructuredOutput.parse({"json_schema": schema})
    with pytest.raises(UserError, match="cannot be in the name of a column: use letters, digits"):
        StructuredOutput.parse({"json_schema": schema, "columns": [name]})


@pytest.mark.parametrize(
    "value", [{"type": "object"}, {"type": "array"}, {"type": "array", "items": {"type": "integer"}}, {}, True]
)
def test_a_key_whose_type_no_column_has_is_refused(value):
    with pytest.raises(UserError, match="`columns`: 'a': its type in json_schema must be string, number, integer,"):
        StructuredOutput.parse({"json_schema": {"type": "object", "properties": {"a": value}}, "columns": ["a"]})


def test_a_least_length_is_refused_because_the_form_ends_the_text():
    with pytest.raises(UserError, match="`min_new_tokens`: a text with `structured` ends where its form ends"):
        CONFIG.replace(structured={"choice": ["a"]}, min_new_tokens=2)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"subject": "a cat", "tags": ["x"], "count": 2}', True),
        ('{"subject": "été", "score": null}', True),
        ('{"subject": "a ca', False),
        ('{"tags": []}', False),
        ('{"subject": 1}', False),
        ('{"subject": "a"} and more', False),
        ('```json\n{"subject": "a"}\n```', False),
        ('["subject"]', False),
        ('{"subject": "a", "score": NaN}', False),
        ('{"subject": "\\ud800"}', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_a_text_that_is_no_json_of_the_schema_is_flagged(text, valid):
    assert ("invalid_json" in flags({"json_schema": SCHEMA}, text)) is not valid
    assert "no_match" not in flags({"json_schema": SCHEMA}, text)


def test_a_text_that_does_not_match_as_a_whole_or_is_no_choice_is_flagged():
    assert flags({"regex": "[a-z]+ [0-9]"}, "cat 2") == []
    for text in ("cat 22", "a cat 2", "cat 2\n"):
        assert flags({"regex": "[a-z]+ [0-9]"}, text) == ["no_match"]
    assert flags({"choice": ["a photo", "a drawing"]}, "a photo") == []
    assert flags({"choice": ["a photo", "a drawing"]}, "A photo") == ["no_match"]
    assert flags({"choice": ["a photo", "a drawing"]}, "a pho", "length") == ["truncated", "no_match"]


def test_rules_for_sentences_do_not_hold_for_a_text_with_a_form():
    tags = '{"subject": "x", "tags": ["été à Łódź", "ünïcødé wörds hérè"]}'
    assert flags({"json_schema": SCHEMA}, tags) == []
    assert "non_english" in flags(None, tags)


def test_columns_have_the_values_of_the_keys_and_null_for_what_is_missing_or_of_another_type():
    types = StructuredOutput.parse({"json_schema": SCHEMA, "columns": list(SCHEMA["properties"])}).column_types
    assert types == {
        "subject": "string",
        "tags": "strings",
        "count": "integer",
        "score": "number",
        "is_photo": "boolean",
        "style": "string",
    }
    text = json.dumps(
        {"subject": "a", "tags": ["x", "y"], "count": 2.0, "score": 1, "is_photo": False, "style": "flat"}
    )
    values = {"subject": "a", "tags": ["x", "y"], "count": 2, "score": 1.0, "is_photo": False, "style": "flat"}
    assert column_values(text, types) == values
    empty = dict.fromkeys(types)
    for other in (None, "{}", "[]", "3", '{"a', '{"subject": "\\ud800"}'):
        assert column_values(other, types) == empty
    wrong = {"subject": 1, "tags": [1], "count": 10**30, "score": 10**400, "is_photo": 1, "style": []}
    assert column_values(json.dumps(wrong), types) == empty
    assert column_values(json.dumps({"tags": "x", "count": True, "score": True}), types) == empty
    assert column_values('{"count": 1e999, "score": 1e999}', types) == empty


def test_the_identity_covers_the_form_and_the_order_of_its_keys_but_not_the_columns():
    config = CONFIG.replace(structured={"json_schema": SCHEMA})
    assert config.id != CONFIG.id
    assert config.replace(structured={"json_schema": SCHEMA, "columns": ["subject"]}).id == config.id
    turned = SCHEMA | {"properties": dict(reversed(SCHEMA["properties"].items()))}
    assert turned == SCHEMA
    assert config.replace(structured={"json_schema": turned}).id != config.id
    recorded = json.loads(json.dumps(config.to_dict()))
    assert CaptionerConfig.from_dict(recorded).id == config.id


def test_a_text_of_several_has_a_form_of_its_own_or_the_captioners():
    texts = {"a": "A?", "b": {"prompt": "B?", "structured": {"regex": "b+"}}, "c": {"prompt": "C?", "structured": None}}
    config = CONFIG.replace(prompts=texts, structured={"choice": ["yes", "no"]})
    a, b, c = (text.structured for text in config.texts)
    assert a.choice == ("yes", "no") and b.regex == "b+" and c is None
