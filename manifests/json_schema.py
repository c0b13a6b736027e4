"""The JSON schema of a manifest, with which editors complete and check it.

pydantic derives the schema from the models. What only validators know is added here: `scale` and `files` stand for
`sources`, and a source that `use`s a published one takes its name from there.
"""

from typing import Any

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.sources.catalog import SOURCES, scales

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def manifest_schema() -> dict[str, Any]:
    """The schema of a manifest before its validation, in draft 2020-12."""
    schema = Manifest.model_json_schema()
    source = schema["$defs"]["Source"]
    source["required"] = ["files"]
    properties = schema["properties"]
    properties["sources"]["items"]["anyOf"] = [{"required": ["name"]}, {"required": ["use"]}]
    properties["scale"] = {
        "title": "Scale",
        "description": "A scale of the LoTLIP paper, in place of `sources`; `files` has the lists of its sources.",
        "enum": list(scales()),
    }
    properties["files"] = {
        "title": "Files",
        "description": "With `scale`: from the name of each of its sources to the files of its list, or to settings.",
        "type": "object",
        "properties": {name: _files_of_a_source() for name in SOURCES},
        "additionalProperties": False,
    }
    return {
        "$schema": DIALECT,
        **schema,
        "title": "Manifest of lotlip-data",
        "required": ["name"],
        "oneOf": [{"required": ["sources"]}, {"required": ["scale", "files"]}],
        "dependentRequired": {"files": ["scale"]},
    }


def _files_of_a_source() -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"$ref": "#/$defs/Source"}]}
