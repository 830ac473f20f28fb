"""`idiolect demo --check`: the whole life of a person's adapter over HTTP, each step verified."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from idiolect.errors import IdiolectError
from idiolect_services.demo.showcase import Showcase

RETRAIN_SECONDS = 60.0
NOBODY = "someone-who-never-opted-in"


class CheckFailedError(IdiolectError):
    code = "check_failed"


class DemoClient:
    """The demo's own calls, as a product would make them."""

    def __init__(self, address: str, key: str) -> None:
        self._http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60.0)

    def close(self) -> None:
        self._http.close()

    def rerank(self, showcase: Showcase, user: str) -> dict[str, Any]:
        body = {"query": showcase.query, "documents": list(showcase.documents), "user": user, "domain": showcase.domain}
        return self.post("/v1/rerank", body)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._http.post(path, json=body)
        if response.is_error:
            raise CheckFailedError(f"{path} answered {response.status_code}: {response.text[:500]}")
        answer: dict[str, Any] = response.json()
        return answer


def order_of(answer: dict[str, Any]) -> list[int]:
    return [result["index"] for result in answer["results"]]


def scores_of(answer: dict[str, Any]) -> dict[int, float]:
    return {result["index"]: result["score"] for result in answer["results"]}


def check_demo(client: DemoClient, showcase: Showcase, say: Callable[[str], None]) -> None:
    """Raises CheckFailedError at the first step that is not as it should be."""
    first, second = showcase.users
    mine, theirs = client.rerank(showcase, first), client.rerank(showcase, second)
    _expect(mine["personalization"]["applied"] and theirs["personalization"]["applied"], "both people are personalised")
    _expect(order_of(mine) != order_of(theirs), "two people with different tastes get different rankings")
    say(f"{first} sees {order_of(mine)}, {second} sees {order_of(theirs)}")
    nobody = client.rerank(showcase, NOBODY)
    _expect(nobody["personalization"]["reason"] == "unknown_user", "an unknown user gets the shared ranking, and why")
    say("who never opted in gets the shared ranking, with the reason")
    version = _feedback_goes_live(client, showcase, first, mine)
    say(f"feedback retrained {first}, and version {version} went live without a restart")
    receipt = client.post(f"/v1/users/{quote(second, safe='')}/personalization/reset", {"scope": "all"})
    _expect(bool(receipt.get("signature")), "the reset is signed")
    after, bare = client.rerank(showcase, second), client.rerank(showcase, NOBODY)
    _expect(not after["personalization"]["applied"], "nothing personal is applied after the reset")
    _expect(scores_of(after) == scores_of(bare), "after the reset, scores are bit for bit those of who never opted in")
    say(f"{second} was reset: every score equals, bit for bit, that of someone who never opted in")


def _feedback_goes_live(client: DemoClient, showcase: Showcase, user: str, answer: dict[str, Any]) -> str:
    last = order_of(answer)[-1]
    body = {"inference_id": answer["id"], "user": user, "domain": showcase.domain, "kind": "choice", "value": last}
    client.post("/v1/feedback", body)
    deadline = time.monotonic() + RETRAIN_SECONDS
    while time.monotonic() < deadline:
        version: str | None = client.rerank(showcase, user)["personalization"]["adapter"]
        if version is not None and version != answer["personalization"]["adapter"]:
            return version
        time.sleep(0.1)
    raise CheckFailedError(
        f"the feedback of {user} led to no new version within {RETRAIN_SECONDS:.0f} s.",
        mend="Their privacy budget may be spent: see idiolect user show.",
    )


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise CheckFailedError(
            f"this does not hold: {what}.", mend="Run idiolect doctor, or start with an empty --home."
        )
