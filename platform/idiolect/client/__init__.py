"""The API from Python, with or without asyncio. Needs httpx and pydantic only.

    from idiolect import Client

    with Client("https://idiolect.example", "idio_...") as api:
        ranking = api.rerank("How do I reset my router?", drafts, user="ada")
        print(drafts[ranking.best.index], ranking.personalization.reason)

`help(Client)` lists what it can do: for people and rankings (`calls`), and for operators (`registry_calls`,
`rollout_calls`). Errors are those of `idiolect.errors`, with the status and request id
added (`idiolect.client.errors`).
"""

from __future__ import annotations

from idiolect.client.asynchronous import AsyncClient
from idiolect.client.calls import Document, DomainChoice, Signal
from idiolect.client.errors import ApiError
from idiolect.client.retries import RetryPolicy
from idiolect.client.synchronous import Client

__all__ = ["ApiError", "AsyncClient", "Client", "Document", "DomainChoice", "RetryPolicy", "Signal"]
