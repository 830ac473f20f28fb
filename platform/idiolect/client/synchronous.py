"""The client without asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec

import httpx

from idiolect.client import calls, registry_calls, rollout_calls
from idiolect.client.call import Call, R
from idiolect.client.endpoint import BearerAuth, checked_base_url, default_headers
from idiolect.client.exchange import Exchange, Failed
from idiolect.client.files import Incoming
from idiolect.client.methods import introduced
from idiolect.client.retries import RetryPolicy

P = ParamSpec("P")


def _method(build: Callable[P, Call[R]]) -> Callable[Concatenate[Client, P], R]:
    """A method that sends the call which `build` makes, with its parameters and words."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.send(build(*args, **kwargs))

    return introduced(method, build, "Client")


class Client:
    """Safe to share between threads. Close it, or use it in a `with`.

    `timeout_s` is for each step of one try (connect, send, first byte), not for all tries together.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        retries: RetryPolicy | None = None,
        allow_http: bool = False,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises ConfigurationError for a base URL or key that can't work; neither is sent anywhere before."""
        base_url = checked_base_url(base_url, allow_http=allow_http)
        self._exchange = Exchange(base_url, retries or RetryPolicy())
        self._sleep = sleep
        self._http = httpx.Client(
            auth=BearerAuth(key),
            headers=default_headers(),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
            transport=transport,
        )

    def send(self, call: Call[R]) -> R:
        """Send one call of `calls`, `registry_calls` or `rollout_calls`. Raises ApiError."""
        attempt = 0
        while True:
            answer = self._try(call, attempt)
            if not isinstance(answer, Failed):
                return answer
            if answer.wait_s is None:
                raise answer.error
            self._sleep(answer.wait_s)
            attempt += 1

    def _try(self, call: Call[R], attempt: int) -> R | Failed:
        try:
            if call.into is not None:
                return self._download(call, call.into, attempt)
            response = self._http.request(**self._exchange.request(call))
        except httpx.RequestError as error:
            failed = self._exchange.lost(call, error, attempt)
            failed.error.__cause__ = error
            return failed
        return self._exchange.read(call, response, attempt)

    def _download(self, call: Call[R], into: Path, attempt: int) -> R | Failed:
        with Incoming(into) as file:
            with self._http.stream(**self._exchange.request(call)) as response:
                if not response.is_success:
                    response.read()
                    return self._exchange.read(call, response, attempt)
                self._exchange.check_kind(call, response)
                for block in response.iter_bytes():
                    file.write(block)
            return call.result.model_validate(file.keep())

    rerank = _method(calls.rerank)
    score = _method(calls.score)
    compare = _method(calls.compare)
    complete = _method(calls.complete)
    issue_token = _method(calls.issue_token)
    upstream = _method(calls.upstream)
    set_upstream = _method(calls.set_upstream)
    remove_upstream = _method(calls.remove_upstream)
    retention = _method(calls.retention)
    set_retention = _method(calls.set_retention)
    feedback = _method(calls.feedback)
    feedback_batch = _method(calls.feedback_batch)
    consent = _method(calls.consent)
    set_consent = _method(calls.set_consent)
    consent_receipt = _method(calls.consent_receipt)
    reset = _method(calls.reset)
    erase = _method(calls.erase)
    export = _method(calls.export)
    save_export = _method(calls.save_export)
    reset_receipt = _method(calls.reset_receipt)
    explanation = _method(calls.explanation)
    health = _method(calls.health)
    ready = _method(calls.ready)

    adapters = _method(registry_calls.adapters)
    adapter = _method(registry_calls.adapter)
    register_lora = _method(registry_calls.register_lora)
    register_lora_version = _method(registry_calls.register_lora_version)
    adapter_versions = _method(registry_calls.adapter_versions)
    pointers = _method(registry_calls.pointers)
    promote = _method(registry_calls.promote)
    rollback = _method(registry_calls.rollback)
    adapter_history = _method(registry_calls.adapter_history)
    lineage = _method(registry_calls.lineage)
    contributions = _method(registry_calls.contributions)
    audit = _method(registry_calls.audit)
    releases = _method(registry_calls.releases)
    release = _method(registry_calls.release)
    release_card = _method(registry_calls.release_card)
    promote_release = _method(registry_calls.promote_release)
    revoke_release = _method(registry_calls.revoke_release)
    export_release = _method(registry_calls.export_release)
    import_release = _method(registry_calls.import_release)
    diff = _method(registry_calls.diff)
    collect_garbage = _method(registry_calls.collect_garbage)
    ledger = _method(registry_calls.ledger)

    rollouts = _method(rollout_calls.rollouts)
    rollout = _method(rollout_calls.rollout)
    create_rollout = _method(rollout_calls.create_rollout)
    start_rollout = _method(rollout_calls.start_rollout)
    hold_rollout = _method(rollout_calls.hold_rollout)
    resume_rollout = _method(rollout_calls.resume_rollout)
    abort_rollout = _method(rollout_calls.abort_rollout)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._exchange.base_url!r})"
