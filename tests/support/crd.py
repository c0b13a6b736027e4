"""Checks examples/rayjob.yaml against KubeRay's published schema.

    python -m tests.support.crd ray.io_rayjobs.yaml

The file is in KubeRay's repository, in ray-operator/config/crd/bases. No package registry has it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.paths import ROOT

_UNCHECKED = ("int32", "int64")  # formats of numbers that JSON Schema does not know


def errors(resource: dict[str, Any], definition: dict[str, Any]) -> Iterator[str]:
    """What a resource has that its CustomResourceDefinition does not allow. Unknown fields are errors too."""
    version = resource["apiVersion"].partition("/")[2]
    schemas = {entry["name"]: entry["schema"]["openAPIV3Schema"] for entry in definition["spec"]["versions"]}
    if version not in schemas or resource["kind"] != definition["spec"]["names"]["kind"]:
        yield f"{resource['apiVersion']} {resource['kind']}: the schema is that of {definition['metadata']['name']}"
        return
    schema = _strict(schemas[version])
    schema["properties"]["metadata"] = {"type": "object"}  # checked by Kubernetes itself
    for error in jsonschema.Draft7Validator(schema).iter_errors(resource):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def _strict(schema: Any) -> Any:
    """The schema as JSON Schema, without Kubernetes's extensions, and with unknown fields refused."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {name: _strict(part) for name, part in schema.items() if not name.startswith("x-kubernetes-")}
    if strict.get("format") in _UNCHECKED:
        del strict["format"]
    if strict.get("type") == "object" and "properties" in strict:
        strict.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return strict


def main() -> None:
    definition = yaml.safe_load(Path(sys.argv[1]).read_text())
    found = list(errors(yaml.safe_load((ROOT / "examples" / "rayjob.yaml").read_text()), definition))
    print("\n".join(found) or "examples/rayjob.yaml is valid")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
