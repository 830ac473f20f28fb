"""Every call that the clients can send, and values for its parameters: a call that is added later is covered as it is,
and a new parameter has to be named here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from idiolect.client import Document, DomainChoice, Signal, calls, registry_calls, rollout_calls
from idiolect.client.call import Call
from idiolect.client.registry_results import Pointer, Pointers
from idiolect.client.results import Retention

MODULES = (calls, registry_calls, rollout_calls)

_SIGNAL = Signal("i", "choice", 0, "u", id="s", domain="d", occurred_at=datetime(2026, 11, 1, tzinfo=UTC))
VALUES: Mapping[str, Any] = {
    "a": "x",
    "adapter_config": {"r": 8},
    "adapter_id": "domain:d",
    "alpha": 0.05,
    "api_key": "k",
    "apply": True,
    "b": "y",
    "base_url": "https://api.example.com",
    "based_on": Pointers(adapter="domain:d", pointers=(Pointer(name="live", version="v", revision=2),)),
    "candidates": True,
    "content": b"{}",
    "days": 90,
    "documents": ["x", Document("y", id="2")],
    "domain": "d",
    "domains": {"d": DomainChoice(opted_in=True, strength=0.5)},
    "explain": True,
    "file": Path("release.ndjson"),
    "global_digest": "g",
    "guardrails": {"success": 0.1},
    "idempotency_key": "k",
    "if_revision": 3,
    "limit": 5,
    "messages": [{"role": "user", "content": "q"}],
    "min_people": 10,
    "model": "m",
    "n": 4,
    "older_than_days": 30.0,
    "opted_in": True,
    "page_token": "p",
    "parameters": 0.5,
    "paused": True,
    "per_person": 1,
    "personalization": "required",
    "query": "q",
    "reason": "r",
    "release": "r1",
    "release_id": "r1",
    "reset_id": "r2",
    "return_documents": True,
    "rollout_id": "o",
    "scope": "all",
    "scopes": ["infer"],
    "signal": _SIGNAL,
    "signals": [_SIGNAL],
    "slow_ms": 100.0,
    "staged": True,
    "start": False,
    "steps": [0.5, 1.0],
    "strength": 0.5,
    "top_n": 1,
    "ttl_seconds": 60,
    "user": "u",
    "version_id": "v",
    "weights": b"w",
}
FOR_ONE: Mapping[str, Mapping[str, Any]] = {  # by the name of the call
    "set_retention": {"based_on": Retention(days=365, own_days=None)},
    "create_rollout": {"version": None, "global_model": None, "strength": None},  # one candidate, a release
}
ALSO_NEEDED = {"create_rollout": {"release"}}


def builders() -> dict[str, Callable[..., Call[Any]]]:
    """By name, which is the methods' too."""
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def filled(build: Callable[..., Call[Any]], **changed: Any) -> Call[Any]:
    """The call with every argument given."""
    return build(**{name: _value(build, name) for name in inspect.signature(build).parameters} | changed)


def bare(build: Callable[..., Call[Any]]) -> Call[Any]:
    """The call with no argument that may be left out."""
    parameters = inspect.signature(build).parameters.values()
    needed = {one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    return build(**{name: _value(build, name) for name in needed | ALSO_NEEDED.get(build.__name__, set())})


def _value(build: Callable[..., Call[Any]], parameter: str) -> Any:
    own = FOR_ONE.get(build.__name__, {})
    return own[parameter] if parameter in own else VALUES[parameter]
