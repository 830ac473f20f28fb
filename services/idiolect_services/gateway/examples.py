"""An example of every body in the API's description, made from its schema: from the examples of fields where they have
some, else from their kind. So there is one for every operation, and none that the schema does not allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JSON = "application/json"
_STRINGS = {"date-time": "2026-05-01T12:00:00Z", "binary": "", "uuid": "0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b"}
_NUMBERS = {"integer": 0, "number": 0.0}
_ID = "0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
_HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
# What is called like this is alike wherever it occurs.
_NAMED = {
    "user": "ada",
    "domain": "support-chat",
    "query": "How do I reset my router?",
    "a": "Hold the button for ten seconds.",
    "b": "Of course! Let me walk you through it.",
    "text": "Hold the button for ten seconds.",
    "documents": ["Hold the button for ten seconds.", "Of course! Let me walk you through it."],
    "reason": "bad answers since Monday",
    "actor": "api key 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
    "key_id": "0123456789abcdef",
    "base_url": "https://api.example.com/v1",
    "next_page_token": None,
}
MOST_DEEP = 12


def add_examples(document: dict[str, Any]) -> None:
    """To every JSON body of the description that has none."""
    schemas = document["components"]["schemas"]
    for operation in (one for path in document["paths"].values() for one in path.values()):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}) for body in bodies):
            for media, described in content.items():
                if media.endswith("json") and "schema" in described and "example" not in described:
                    described["example"] = example_of(described["schema"], schemas)


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any], name: str = "", depth: int = 0) -> Any:
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas, name, depth)
    if schema.get("examples"):
        return schema["examples"][0]
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for one in schema.get("anyOf", schema.get("oneOf", schema.get("allOf", ()))):
        return example_of({**one, **_told(schema)}, schemas, name, depth)
    return _of_kind(schema, schemas, name, depth)


def _told(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What is said beside the alternatives, and holds for each."""
    return {key: schema[key] for key in ("examples", "default") if key in schema}


def _of_kind(schema: Mapping[str, Any], schemas: Mapping[str, Any], name: str, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return _object(schema, schemas, depth)
    if kind == "array":
        items = schema.get("items")
        if name in _NAMED and isinstance(_NAMED[name], list):
            return _NAMED[name]
        return [] if items is None or depth > MOST_DEEP else [example_of(items, schemas, name.rstrip("s"), depth + 1)]
    if kind == "string":
        return _string(schema, name)
    if kind == "boolean":
        return bool(schema.get("default", True))
    if kind in _NUMBERS:
        return schema.get("default", schema.get("minimum", _NUMBERS[kind]))
    return None if kind == "null" else {}


def _object(schema: Mapping[str, Any], schemas: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Of what is optional only what a first call would send."""
    if depth > MOST_DEEP:
        return {}
    required = set(schema.get("required", ()))
    return {
        key: example_of(part, schemas, key, depth + 1)
        for key, part in schema.get("properties", {}).items()
        if key in required or part.get("examples")
    }


def _string(schema: Mapping[str, Any], name: str) -> str:
    if isinstance(_NAMED.get(name), str):
        return str(_NAMED[name])
    if schema.get("format") in _STRINGS:
        return _STRINGS[schema["format"]]
    if "default" in schema:
        return str(schema["default"])
    if any(part in name for part in ("digest", "sha256", "hash", "model", "global")):
        return _HEX
    return _ID if name in ("id", "version", "release", "adapter", "run") or name.endswith("_id") else name or "text"
