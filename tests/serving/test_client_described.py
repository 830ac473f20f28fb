"""The clients against the description of the API: nothing of it is left out, what they send it takes, and what they
read it promises."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel
from serving_world import world_at

from client_calls import bare, builders, filled
from idiolect.client.call import JSON, Call
from idiolect.client.results import Result
from idiolect_services.gateway.described import OPERATIONS

# One signal, or several; into memory, or into a file.
TWO_FORMS = {"send_feedback": ["feedback", "feedback_batch"], "export_user": ["export", "save_export"]}
every_call = pytest.mark.parametrize("name", sorted(builders()))


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with world_at(tmp_path_factory.mktemp("described")) as world:
        return dict(world.app.openapi())


def operation_of(call: Call[Any], document: dict[str, Any]) -> dict[str, Any]:
    """What the API describes at the call's address."""
    (found,) = (
        methods[call.method.lower()]
        for path, methods in document["paths"].items()
        if call.method.lower() in methods and re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), call.path)
    )
    return dict(found)


def test_every_operation_of_the_api_has_one_method(document: dict[str, Any]) -> None:
    reached: dict[str, list[str]] = {}
    for name, build in builders().items():
        reached.setdefault(operation_of(bare(build), document)["operationId"], []).append(name)
    offered = {operation for operation, _ in OPERATIONS.values()}
    assert set(reached) == offered, "a route has no method in idiolect/client"
    several = {operation: sorted(names) for operation, names in reached.items() if len(names) > 1}
    assert several == TWO_FORMS


@every_call
def test_what_a_method_sends_is_what_the_api_takes(name: str, document: dict[str, Any]) -> None:
    """The server ignores fields that it does not know, so a name that is wrong would go unnoticed."""
    for call in (filled(builders()[name]), bare(builders()[name])):
        operation = operation_of(call, document)
        offered = Counter(one["in"] for one in operation.get("parameters", ()))
        named = {kind: {p["name"] for p in operation.get("parameters", ()) if p["in"] == kind} for kind in offered}
        required = {p["name"] for p in operation.get("parameters", ()) if p["required"] and p["in"] == "query"}
        assert required <= set(call.query) <= named.get("query", set())
        assert set(call.headers) - {"Content-Type"} <= named.get("header", set())
        bodies = operation.get("requestBody", {}).get("content", {})
        assert ([JSON] if call.body is not None else [call.headers.get("Content-Type")]) == (list(bodies) or [None])
        if call.body is not None:
            jsonschema.validate(call.body, {**bodies[JSON]["schema"], "components": document["components"]})
            _check_known(call.body, bodies[JSON]["schema"], document)
    assert set(filled(builders()[name]).query) == named.get("query", set())


def _check_known(body: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    properties = {name for one in alternatives(schema, document) for name in one.get("properties", ())}
    assert set(body) <= properties | UPSTREAMS_OWN, set(body) - properties


UPSTREAMS_OWN = {"parameters"}  # of a completion: whatever else is sent goes to the tenant's own server


@every_call
def test_what_a_method_reads_is_what_the_api_promises(name: str, document: dict[str, Any]) -> None:
    call = bare(builders()[name])
    responses = operation_of(call, document)["responses"]
    ((_, response),) = [one for one in responses.items() if one[0].startswith("2")]
    assert list(response["content"]) == [call.media]
    if call.media == JSON:
        assert mismatches(response["content"][JSON]["schema"], document, call.result) == []


def mismatches(schema: dict[str, Any], document: dict[str, Any], result: type[BaseModel]) -> list[str]:
    """Where an answer that the schema allows would not be read as `result`."""
    ours = result.model_json_schema(mode="validation")
    options = [_differences(one, document, ours, ours, "$") for one in alternatives(schema, document)]
    return min(options, key=len)  # one route answers in one of two forms


def alternatives(schema: dict[str, Any], document: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return alternatives(found, document)
    if "anyOf" in schema:
        return [one for part in schema["anyOf"] for one in alternatives(part, document)]
    return [schema]


def _differences(
    theirs: dict[str, Any], document: dict[str, Any], ours: dict[str, Any], root: dict[str, Any], place: str
) -> list[str]:
    """Each of their alternatives has to be one of ours."""
    found = []
    for one in alternatives(theirs, document):
        options = [_difference(one, document, mine, root, place) for mine in alternatives(ours, root)]
        found += min(options, key=len)
    return found


def _difference(
    theirs: dict[str, Any], document: dict[str, Any], ours: dict[str, Any], root: dict[str, Any], place: str
) -> list[str]:
    if not set(ours) - {"title", "default"}:
        return []  # anything will do
    kinds = (theirs.get("type"), ours.get("type"))
    if kinds[0] != kinds[1] and kinds != ("integer", "number"):
        return [f"{place} is {kinds[0]}, and {kinds[1]} is read"] * 9  # farther off than any other alternative
    said, read = (set(one.get("enum", [one["const"]] if "const" in one else [])) for one in (theirs, ours))
    found = [f"{place} may be what is not read"] if read and not (said and said <= read) else []
    if ours.get("format") and ours["format"] != theirs.get("format"):
        found.append(f"{place} is not said to be {ours['format']}")
    if "items" in ours:
        found += _differences(theirs["items"], document, ours["items"], root, f"{place}[]")
    if isinstance(ours.get("additionalProperties"), dict) and "properties" not in ours:
        values = theirs["additionalProperties"]
        found += _differences(values, document, ours["additionalProperties"], root, f"{place}{{}}")
    for name, field in ours.get("properties", {}).items():
        if name not in theirs.get("properties", {}):
            found.append(f"{place}.{name} is not promised")
            continue
        if name in ours.get("required", ()) and name not in theirs.get("required", ()):
            found.append(f"{place}.{name} may be missing")
        found += _differences(theirs["properties"][name], document, field, root, f"{place}.{name}")
    return found


class Wrong(Result):
    id: int
    release: str
    nothing: str
    domain: str


def test_a_result_that_the_api_does_not_promise_is_told_from_one_that_it_does(document: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/AdapterSummary"}
    assert {one.partition(",")[0] for one in mismatches(schema, document, Wrong)} == {
        "$.id is string",
        "$.nothing is not promised",
        "$.domain is null",
    }
