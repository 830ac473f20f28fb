"""The OpenAPI description. Routes read and write JSON themselves, so each says here which models it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.routing import Match

from idiolect.errors import NotFoundError
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.described import name_operations
from idiolect_services.gateway.examples import add_examples
from idiolect_services.gateway.problems import MEDIA_TYPE
from idiolect_services.gateway.schemas.common import Problem
from idiolect_services.gateway.tokens import TOKEN_SCOPES

_REF = "#/components/schemas/{model}"

_PROBLEMS = {
    400: "Not JSON, or JSON that is ambiguous.",
    401: "No valid key.",
    404: "Does not exist, or this key may not see it.",
    408: "The body did not arrive in time.",
    409: "The state does not allow it, or the same request is under way.",
    412: "The state is not the one named by If-Match.",
    413: "Over a size limit.",
    415: "The body is not plain JSON.",
    422: "Fields that don't validate, listed in `errors`.",
    429: "Too many requests; see Retry-After.",
    500: "The server failed.",
    502: "The tenant's upstream failed, or can't be used.",
    503: "Overloaded, or the store can't be reached; see Retry-After.",
    504: "The tenant's upstream did not answer in time.",
}
_ALWAYS = (401, 404, 422, 429, 500, 503)
_WITH_BODY = (400, 408, 413, 415)


class Documented:
    """Collects the models that routes name, so that they end up among the components."""

    def __init__(self) -> None:
        self._requests: list[type[BaseModel]] = []
        self._responses: list[type[BaseModel]] = [Problem]

    def route(
        self,
        scope: Scope | None,
        response: type[BaseModel] | Sequence[type[BaseModel]],
        *,
        body: type[BaseModel] | Sequence[type[BaseModel]] | None = None,
        status: int = 200,
        problems: Sequence[int] = (),
        headers: Sequence[tuple[str, str]] = (),
        people: bool = True,
    ) -> dict[str, Any]:
        """Keyword arguments for `add_api_route`. `headers`: (name, description) of optional request headers. Without
        `people` no end user's token opens it, whatever its scope."""
        responses = [response] if isinstance(response, type) else list(response)
        bodies = [body] if isinstance(body, type) else list(body or ())
        self._responses += responses
        self._requests += bodies
        named = {*(_ALWAYS if scope else (500, 503)), *(_WITH_BODY if bodies else ()), *problems}
        extra: dict[str, Any] = {"security": _security(scope, people)}
        if bodies:
            extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _any_of(bodies)}}}
        if headers:
            extra["parameters"] = [
                {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
                for name, text in headers
            ]
        described = {
            status: {"description": "Done.", "content": {"application/json": {"schema": _any_of(responses)}}}
        } | {code: _problem_response(code) for code in sorted(named)}
        return {
            "responses": described,
            "openapi_extra": extra,
            "response_model": None,
            "status_code": status,
            "description": f"Needs a key with the scope `{scope.value}`." if scope else "Needs no key.",
        }

    def install(self, app: FastAPI) -> None:
        def build() -> dict[str, Any]:
            if app.openapi_schema is None:
                app.openapi_schema = self._describe(app)
            return app.openapi_schema

        app.openapi = build  # type: ignore[method-assign]

    def _describe(self, app: FastAPI) -> dict[str, Any]:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        models = [(model, "validation") for model in dict.fromkeys(self._requests)]
        models += [(model, "serialization") for model in dict.fromkeys(self._responses)]
        _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
        components = document.setdefault("components", {})
        # FastAPI's own 422 body is never sent; ours is a problem.
        components["schemas"] = definitions["$defs"]
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "bearerFormat": "idio_..."},
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        }
        name_operations(document)
        add_examples(document)
        return document


def _security(scope: Scope | None, people: bool) -> list[dict[str, list[str]]]:
    """A key of a tenant, or a token of one person, each with the scope."""
    if scope is None:
        return []
    names = ["key", "token"] if people and scope in TOKEN_SCOPES else ["key"]
    return [{name: [scope.value]} for name in names]


@dataclass(frozen=True, slots=True)
class Needed:
    """`people`: whether an end user's token will do."""

    scope: Scope
    people: bool

    def lets_in(self, caller: Caller) -> bool:
        try:
            self.check(caller)
        except NotFoundError:
            return False
        return True

    def check(self, caller: Caller) -> None:
        """Raises NotFoundError."""
        caller.require(self.scope)
        if not self.people:
            caller.require_server()


def needed_by(route: Any) -> Needed | None:
    """What a route that was described here asks of its caller, None if nothing."""
    security = (getattr(route, "openapi_extra", None) or {}).get("security")
    return Needed(Scope(security[0]["key"][0]), len(security) > 1) if security else None


def methods_for(routes: Iterable[APIRoute], request: Request, caller: Caller | None) -> set[str]:
    """Of the address that is called: those that the caller may use; without a caller those that need none."""
    found: set[str] = set()
    for route in routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            needed = needed_by(route)
            if needed is None or (caller is not None and needed.lets_in(caller)):
                found |= route.methods or set()
    return found


def _any_of(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    references = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _problem_response(status: int) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=Problem.__name__)}
    return {"description": _PROBLEMS[status], "content": {MEDIA_TYPE: {"schema": schema}}}
