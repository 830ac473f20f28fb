"""Idiolect's platform: the words, rules and stores. Decides; holds no tensors and speaks no HTTP.

The one thing here that speaks HTTP is the client, which is why `Client` and `AsyncClient` are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idiolect.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import idiolect.client

    return getattr(idiolect.client, name)
