"""Every operation of the API as its own description lists them, and a world in which each finds something to do.

A route that is added later is covered as it is. If its paths or bodies have fields that need something real, name them
in `Settled.known`; if its body has to hold more than the fields that are required, in BODIES.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
from fastapi import FastAPI
from serving_world import World
from upstream_server import completion

from idiolect.resets.plan import plan_reset
from idiolect.tenancy import Scope
from idiolect_services.gateway.upstream import UpstreamClient

JSON = "application/json"
UPSTREAM = "http://10.0.0.5:8000"
QUESTION = [{"role": "user", "content": "q"}]
BODIES: dict[str, dict[str, Any]] = {  # by the name of the schema
    "ScoreTexts": {"query": "q", "documents": ["a", "b"]},
    "ConsentRequest": {"paused": False},
    "SignalRequest": {"kind": "choice", "value": 0},
    "TokenRequest": {"scopes": ["controls"]},
    "AdapterUpload": {"domain": "default"},
}

# What needs a model with layers to succeed, and succeeds with one in test_lora_serving.
WITH_LAYERS = frozenset({"POST /v1/adapters", "POST /v1/adapters/{adapter_id}/versions"})


@dataclass(frozen=True, slots=True)
class Operation:
    """`scope`: what a key needs, None for those that need no key. `people`: whether an end user's token opens it.
    `media` is the type of its body, and `schema` the name of what it holds, if that is JSON."""

    method: str
    path: str
    scope: Scope | None
    people: bool
    media: str | None
    schema: str | None
    required: tuple[str, ...]  # of the query

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def is_open(self, status: int) -> bool:
        """Whether an answer of this status shows that the caller was let in, and found what they asked for."""
        return status in (200, 201, 202, 409) or (status == 422 and str(self) in WITH_LAYERS)


def operations(app: FastAPI) -> list[Operation]:
    document = app.openapi()
    return [
        _operation(method, path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


def guarded(app: FastAPI) -> list[Operation]:
    found = [operation for operation in operations(app) if operation.scope is not None]
    assert len(found) > 30  # it is really the whole API
    return found


def _operation(method: str, path: str, described: dict[str, Any]) -> Operation:
    schemes = {name: scopes for one in described["security"] for name, scopes in one.items()}
    bodies = described.get("requestBody", {}).get("content", {})
    body = bodies.get(JSON, {}).get("schema")
    first = None if body is None else body.get("anyOf", [body])[0]["$ref"].rpartition("/")[2]
    query = [one["name"] for one in described.get("parameters", ()) if one["in"] == "query" and one["required"]]
    scope = Scope(schemes["key"][0]) if schemes else None
    return Operation(method.upper(), path, scope, "token" in schemes, next(iter(bodies), None), first, tuple(query))


class Settled:
    """Everything of `tenant` that the API can name exists, for the person `user`."""

    def __init__(self, world: World, tenant: str = "acme", user: str = "ann") -> None:
        self.world, self.tenant, self.user = world, tenant, user
        self.subject = world.pseudonym(tenant, user)
        self.full = world.key(tenant)
        self.known: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}  # by media type
        self.settle()

    def settle_after(self, operation: Operation) -> None:
        """Whatever it may have deleted is there again."""
        if operation.method != "GET":
            self.settle()

    def settle(self) -> None:
        world, tenant, user = self.world, self.tenant, self.user
        now = world.clock.now()
        world.opt_in(user, tenant)
        reset = world.store.apply_reset(tenant, self.subject, f"reset-{tenant}", plan_reset("feedback"), now)
        first = world.publish_user(user, tenant=tenant)
        version = world.publish_user(user, tenant=tenant)
        world.publish_domain("default", tenant)
        api = world.api(self.full)
        plan = {"candidate": {"kind": "setting", "strength": 0.5}, "steps": [0.5], "reason": "r"}
        rollout = api.post("/v1/rollouts", plan).json()
        assert api.put("/v1/upstream", {"base_url": UPSTREAM}).status_code == 200
        self.known = {
            "user": user,
            "adapter_id": f"user:{self.subject}",
            "version_id": version.id,
            "release_id": version.release,
            "reset_id": reset.id,
            "name": "live",
            "rollout_id": rollout.get("id", self.known.get("rollout_id")),
            "inference_id": api.rerank(user)["id"],
            "version": first.id,
            "a": first.id,
            "b": version.id,
            "candidate": {"kind": "release", "id": first.release},
            "base_url": UPSTREAM,
            "messages": QUESTION,
        }
        exported = api.get(f"/v1/releases/{version.release}/export")
        self.files = {exported.headers["content-type"]: exported.content}

    def path(self, operation: Operation, changed: Mapping[str, Any] | None = None) -> str:
        made_up = dict.fromkeys(names(operation.path), "made-up")
        named = made_up | self.known | dict(changed or {})
        query = urlencode(self.query(operation, changed))
        return operation.path.format(**named) + (f"?{query}" if query else "")

    def query(self, operation: Operation, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What has to be there."""
        return {name: (self.known | dict(changed or {})).get(name, "x") for name in operation.required}

    def body(self, operation: Operation, changed: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        if operation.schema is None:
            return None
        schemas = self.world.app.openapi()["components"]["schemas"]
        schema = schemas[operation.schema]
        fields = {name: _some(schema["properties"][name], schemas) for name in schema.get("required", ())}
        fields |= BODIES.get(operation.schema, {})
        return fields | {name: value for name, value in (self.known | dict(changed or {})).items() if name in fields}

    def send(self, operation: Operation, key: str | None, changed: Mapping[str, Any] | None = None) -> httpx.Response:
        """As the description says it, with everything in its place but for what is `changed`, in path or body."""
        sent = self.sent(operation, changed)
        return self.world.api(key).send(operation.method, self.path(operation, changed), **sent)

    def sent(self, operation: Operation, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The body, as the client is told of it."""
        body = self.body(operation, changed)
        if operation.media is None or body is not None:
            return {} if body is None else {"json": body}
        return {"content": self.files[operation.media], "headers": {"Content-Type": operation.media}}


def names(path: str) -> Sequence[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _some(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A value that the schema allows, for the simple ones that requests have."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema or "const" in schema:
        return schema.get("enum", [schema.get("const")])[0]
    if "anyOf" in schema:
        return _some(schema["anyOf"][0], schemas)
    kind = schema.get("type", "string")
    if kind == "array":
        return [_some(schema["items"], schemas)] * schema.get("minItems", 1)
    if kind == "object":
        return {name: _some(schema["properties"][name], schemas) for name in schema.get("required", ())}
    return {"string": "x" * schema.get("minLength", 1), "boolean": True}.get(kind, schema.get("minimum", 0))


class _Answering(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = json.dumps(completion("one", "two", "three", "four")).encode()
        return httpx.Response(200, stream=httpx.ByteStream(answer))


async def _resolve(_host: str, _port: int) -> Sequence[str]:
    return ["10.0.0.5"]


def with_upstream(world: World) -> World:
    """Whose completions come from nowhere."""
    world.app.state.gateway.close()
    world.app = world.make_app(upstreams=UpstreamClient(_resolve, _Answering))
    return world
