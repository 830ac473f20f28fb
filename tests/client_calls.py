"""Every call that the clients can send, and values for its parameters: a call that is added later is covered as it is,
and a new parameter has to be named here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from idiolect.client import Document, DomainChoice, Signal, calls, results
from idiolect.client.calls import Call

MODULES = (calls,)

_SIGNAL = Signal("i", "choice", 0, "u", id="s", domain="d", occurred_at=datetime(2026, 11, 1, tzinfo=UTC))
VALUES: Mapping[str, Any] = {
    "a": "x",
    "adapter_config": {"r": 8},
    "api_key": "k",
    "b": "y",
    "base_url": "https://api.example.com",
    "based_on": results.Retention(days=365, own_days=None),
    "candidates": True,
    "days": 90,
    "documents": ["x", Document("y", id="2")],
    "domain": "d",
    "domains": {"d": DomainChoice(opted_in=True, strength=0.5)},
    "explain": True,
    "global_digest": "g",
    "idempotency_key": "k",
    "if_revision": 3,
    "limit": 5,
    "messages": [{"role": "user", "content": "q"}],
    "model": "m",
    "n": 4,
    "opted_in": True,
    "page_token": "p",
    "parameters": 0.5,
    "paused": True,
    "personalization": "required",
    "query": "q",
    "reason": "r",
    "release_id": "r1",
    "reset_id": "r2",
    "return_documents": True,
    "scope": "all",
    "scopes": ["infer"],
    "signal": _SIGNAL,
    "signals": [_SIGNAL],
    "staged": True,
    "strength": 0.5,
    "top_n": 1,
    "ttl_seconds": 60,
    "user": "u",
    "version_id": "v",
    "weights": b"w",
}


def builders() -> dict[str, Callable[..., Call[Any]]]:
    """By name, which is the methods' too."""
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def filled(build: Callable[..., Call[Any]]) -> Call[Any]:
    """The call with every argument given."""
    return build(**{name: VALUES[name] for name in inspect.signature(build).parameters})


def bare(build: Callable[..., Call[Any]]) -> Call[Any]:
    """The call with no argument that may be left out."""
    parameters = inspect.signature(build).parameters.values()
    needed = (one for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD)
    return build(**{one.name: VALUES[one.name] for one in needed})
