"""The description of the API is one that people can read, and that a generator makes a working client of."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import jsonschema
import pytest
from every_route import UPSTREAM, Settled, operations, with_upstream
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from serving_world import DOCUMENTS, World, world_at

from idiolect_services.gateway.described import OPERATIONS

ROUTES = [f"{method.upper()} {path}" for method, path in OPERATIONS]


@pytest.fixture
def document(world: World) -> dict[str, Any]:
    return dict(world.app.openapi())


def every_operation(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def bodies(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(status or "request", media type, what is described)"""
    said = {"request": operation.get("requestBody", {}), **operation["responses"]}
    for status, body in said.items():
        for media, described in body.get("content", {}).items():
            yield str(status), media, described


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)
    assert len(document["paths"]) > 30
    with pytest.raises(OpenAPIValidationError):
        validate({**document, "paths": {"no slash": {}}})


def test_every_operation_says_what_it_does_under_a_name_of_its_own(document: dict[str, Any]) -> None:
    found = {(method, path): operation for method, path, operation in every_operation(document)}
    assert set(found) == set(OPERATIONS), "name it in gateway/described.py"
    ids = [operation["operationId"] for operation in found.values()]
    assert len(set(ids)) == len(ids)
    for operation in found.values():
        assert operation["summary"].endswith(".")
        assert operation["description"].startswith(operation["summary"])
        assert "Needs " in operation["description"]


def test_every_json_body_has_an_example_that_its_schema_allows(document: dict[str, Any]) -> None:
    for method, path, operation in every_operation(document):
        for status, media, described in bodies(operation):
            if media.endswith("json") and media != "application/x-ndjson":
                schema = {**described["schema"], "components": document["components"]}
                assert described["example"] not in ({}, [], None), f"{method} {path} {status}"
                jsonschema.validate(described["example"], schema, cls=jsonschema.Draft202012Validator)


def test_every_operation_declares_the_problems_that_it_may_answer_with(document: dict[str, Any]) -> None:
    for method, path, operation in every_operation(document):
        declared = set(operation["responses"])
        needed = {"500", "503"} | ({"401", "404", "422", "429"} if operation["security"] else set())
        needed |= {"400", "408", "413", "415"} if "requestBody" in operation else set()
        assert needed <= declared, f"{method} {path} lacks {needed - declared}"
        for status in declared - {"200", "201", "202"}:
            assert set(operation["responses"][status]["content"]) == {"application/problem+json"}


def test_every_parameter_and_field_of_a_ranking_says_what_it_is(document: dict[str, Any]) -> None:
    for method, path, operation in every_operation(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] != "path":
                assert parameter.get("description") or parameter["schema"].get("description"), f"{method} {path}"


def test_every_example_of_a_request_is_one_that_the_server_takes(tmp_path: Path, empty_database: Path) -> None:
    """It names things that are not there; nothing else may be wrong with it."""
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, upstream_hosts=f"{UPSTREAM},api.example.com") as made:
        acme = Settled(with_upstream(made))
        described = acme.world.app.openapi()["paths"]
        for operation in operations(acme.world.app):
            if operation.schema is None:
                continue
            content = described[operation.path][operation.method.lower()]["requestBody"]["content"]
            example = content["application/json"]["example"]
            answer = acme.world.api(acme.full).send(operation.method, acme.path(operation), json=example)
            allowed = (200, 201, 202, 404, 409)
            said = answer.text[:300]
            named = answer.status_code == 422 and operation.path == "/v1/feedback" and "inference_id" in said
            assert answer.status_code in allowed or named, f"{operation}: {example} {said}"
            acme.settle_after(operation)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A client as openapi-python-client makes it, imported."""
    folder = tmp_path_factory.mktemp("generated")
    with world_at(folder) as made:
        (folder / "openapi.json").write_text(json.dumps(made.app.openapi()))
    binary = dict.fromkeys(("application/zip", "application/x-ndjson", "text/markdown"), "application/octet-stream")
    options = {"post_hooks": [], "package_name_override": "made_client", "content_type_overrides": binary}
    (folder / "options.json").write_text(json.dumps(options))
    command = [str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--meta", "none"]
    command += [
        "--path",
        "openapi.json",
        "--output-path",
        "made_client",
        "--config",
        "options.json",
        "--fail-on-warning",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield importlib.import_module("made_client")
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_client"]:
        del sys.modules[name]


def test_a_generated_client_opts_in_ranks_gives_feedback_and_resets(world: World, generated: ModuleType) -> None:
    from made_client import models  # type: ignore[import-not-found]
    from made_client.api.controls import (  # type: ignore[import-not-found]
        get_personalization,
        reset_personalization,
        set_personalization,
    )
    from made_client.api.feedback import send_feedback  # type: ignore[import-not-found]
    from made_client.api.ranking import rerank  # type: ignore[import-not-found]

    transport = httpx.ASGITransport(world.app)
    client = generated.AuthenticatedClient("http://test", token=world.key(), httpx_args={"transport": transport})

    async def use() -> None:
        async with client:
            consent = models.ConsentRequest(opted_in=True)
            state = await set_personalization.asyncio("ann", client=client, body=consent)
            assert state.opted_in is True
            world.publish_user("ann")
            asked = models.RerankRequest(query="q", documents=DOCUMENTS, user="ann")
            ranked = await rerank.asyncio(client=client, body=asked)
            assert ranked.personalization.applied is True
            assert [result.index for result in ranked.results] != []
            signal = models.SignalRequest(
                inference_id=ranked.id, kind=models.SignalRequestKind.CHOICE, value=1, user="ann"
            )
            outcome = await send_feedback.asyncio(client=client, body=signal)
            assert outcome.status == "accepted"
            wanted = models.ResetRequest(scope=models.ResetRequestScope.ADAPTER)
            receipt = await reset_personalization.asyncio("ann", client=client, body=wanted)
            assert receipt.generation == 1
            now = await get_personalization.asyncio("ann", client=client)
            assert now.generation == 1
            refused = await rerank.asyncio_detailed(client=client, body=models.RerankRequest(query="q", documents=[]))
            assert (refused.status_code, refused.parsed.code) == (422, "invalid_input")

    asyncio.run(use())
