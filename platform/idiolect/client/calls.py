"""The calls of the API about people, rankings and what a tenant sets. Both clients send the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from idiolect.client import results
from idiolect.client.call import Call, given, new_id, segment
from idiolect.errors import InvalidInputError

Mode = Literal["auto", "off", "required"]
ZIP = "application/zip"
ResetScope = Literal["adapter", "feedback", "all"]


@dataclass(frozen=True, slots=True)
class Document:
    """A candidate with your own id, which comes back with its result."""

    text: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class DomainChoice:
    """What a person decides for one domain; None leaves it as it is."""

    opted_in: bool | None = None
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """What `user` did with a ranking. The `id` makes it harmless to send twice; one is made if you give none.

    value: an index for choice, accept and dismiss; indices, best first, for ranking; [index, stars] pairs for rating.
    """

    inference_id: str
    kind: Literal["choice", "ranking", "rating", "accept", "dismiss"]
    value: Any
    user: str
    id: str | None = None
    domain: str | None = None
    occurred_at: datetime | None = None


def rerank(
    query: str,
    documents: Sequence[str | Document],
    *,
    user: str | None = None,
    domain: str | None = None,
    top_n: int | None = None,
    return_documents: bool = False,
    personalization: Mode = "auto",
    strength: float | None = None,
    explain: bool = False,
) -> Call[results.Ranking]:
    """The documents in the order in which `user` would prefer them, best first.

    Safe to send again: an answer that was lost leaves an inference behind that nobody refers to.
    """
    body = {
        "query": query,
        "documents": _documents(documents),
        "top_n": top_n,
        "return_documents": return_documents or None,
        **_person(user, domain, personalization, strength, explain),
    }
    return Call("POST", "/v1/rerank", results.Ranking, given(body))


def score(
    query: str,
    documents: Sequence[str | Document],
    *,
    user: str | None = None,
    domain: str | None = None,
    personalization: Mode = "auto",
    strength: float | None = None,
    explain: bool = False,
) -> Call[results.Scores]:
    """A raw score for each document, in the order in which they were sent."""
    person = _person(user, domain, personalization, strength, explain)
    body = {"query": query, "documents": _documents(documents), **person}
    return Call("POST", "/v1/score", results.Scores, given(body))


def compare(
    query: str,
    a: str,
    b: str,
    *,
    user: str | None = None,
    domain: str | None = None,
    personalization: Mode = "auto",
    strength: float | None = None,
    explain: bool = False,
) -> Call[results.Comparison]:
    """How probable it is that `user` prefers a over b."""
    body = {"query": query, "a": a, "b": b, **_person(user, domain, personalization, strength, explain)}
    return Call("POST", "/v1/compare", results.Comparison, given(body))


def complete(
    messages: Sequence[Mapping[str, Any]],
    *,
    n: int | None = None,
    user: str | None = None,
    domain: str | None = None,
    personalization: Mode = "auto",
    strength: float | None = None,
    explain: bool = False,
    candidates: bool = False,
    **parameters: Any,
) -> Call[results.Completion]:
    """The best of `n` completions for `user`; all of them with `candidates`.

    `parameters` go to the upstream, such as model and temperature. Not sent again when the answer is lost: the upstream
    may have been paid for it.
    """
    person = _person(None, domain, personalization, strength, explain)
    ours = given(person | {"candidates": candidates or None})
    body = {**parameters, "messages": [dict(message) for message in messages], "n": n, "user": user, "idiolect": ours}
    return Call("POST", "/v1/chat/completions", results.Completion, given(body), safe=False)


def issue_token(
    user: str, scopes: Sequence[Literal["infer", "feedback", "controls"]], *, ttl_seconds: int | None = None
) -> Call[results.Token]:
    """A short-lived token with which `user`'s browser may call this API for itself alone."""
    body = given({"user": user, "scopes": list(scopes), "ttl_seconds": ttl_seconds})
    return Call("POST", "/v1/tokens", results.Token, body)


def upstream() -> Call[results.Upstream]:
    """Where completions come from; never its key."""
    return Call("GET", "/v1/upstream", results.Upstream)


def set_upstream(base_url: str, *, api_key: str | None = None, model: str | None = None) -> Call[results.Upstream]:
    """Set where completions come from, replacing what was set before."""
    body = given({"base_url": base_url, "api_key": api_key, "model": model})
    return Call("PUT", "/v1/upstream", results.Upstream, body)


def remove_upstream() -> Call[results.Removal]:
    """Forget the upstream and its key."""
    return Call("DELETE", "/v1/upstream", results.Removal)


def retention() -> Call[results.Retention]:
    """For how many days texts are kept."""
    return Call("GET", "/v1/retention", results.Retention)


def set_retention(days: int | None, *, based_on: results.Retention | None = None) -> Call[results.Retention]:
    """Keep texts for so many days; None: for as long as the installation does.

    `based_on`: what was read before. ApiPreconditionError if somebody changed it since.
    """
    headers = {} if based_on is None else {"If-Match": f'"{based_on.own_days or "default"}"'}
    body = {"days": days}
    return Call("PUT", "/v1/retention", results.Retention, body, headers=headers, safe=based_on is None)


def feedback(signal: Signal) -> Call[results.SignalOutcome]:
    """Say what the person did with a ranking; they are trained again after a few of these."""
    return Call("POST", "/v1/feedback", results.SignalOutcome, _signal(signal))


def feedback_batch(signals: Sequence[Signal]) -> Call[results.BatchOutcome]:
    """Up to 100 signals: checked together, then each is stored and answered for by itself."""
    return Call("POST", "/v1/feedback", results.BatchOutcome, {"signals": [_signal(signal) for signal in signals]})


def consent(user: str) -> Call[results.Consent]:
    """What this person agreed to."""
    return Call("GET", f"{_user(user)}/personalization", results.Consent)


def set_consent(
    user: str,
    *,
    opted_in: bool | None = None,
    paused: bool | None = None,
    strength: float | None = None,
    domains: Mapping[str, DomainChoice] | None = None,
    if_revision: int | None = None,
) -> Call[results.Consent]:
    """Change what is given; of `domains`, those that are named.

    With `if_revision`: ApiPreconditionError if somebody changed it since. Such a change is not sent again when its
    answer is lost: it may have been made, and would then be refused.
    """
    chosen = None if domains is None else {name: given(asdict(choice)) for name, choice in domains.items()}
    body = given({"opted_in": opted_in, "paused": paused, "strength": strength, "domains": chosen})
    headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
    path = f"{_user(user)}/personalization"
    return Call("PUT", path, results.Consent, body, headers=headers, safe=if_revision is None)


def consent_receipt(user: str) -> Call[results.ConsentReceipt]:
    """What this person agreed to or refused, signed."""
    return Call("GET", f"{_user(user)}/personalization/receipt", results.ConsentReceipt)


def reset(
    user: str, scope: ResetScope = "all", *, domain: str | None = None, idempotency_key: str | None = None
) -> Call[results.ResetReceipt]:
    """Forget the adapter; also the feedback; or `all`, also the consent. When it answers, it holds everywhere.

    With `domain` the feedback or consent of that one alone; the adapter goes as a whole.
    """
    headers = {"Idempotency-Key": idempotency_key or new_id()}
    path = f"{_user(user)}/personalization/reset"
    return Call("POST", path, results.ResetReceipt, given({"scope": scope, "domain": domain}), headers=headers)


def erase(user: str) -> Call[results.ResetReceipt]:
    """Erase everything of this person. Doing it twice is harmless, and answers the first receipt."""
    return Call("DELETE", _user(user), results.ResetReceipt)


def export(user: str) -> Call[results.Archive]:
    """Everything that is stored of this person, as a zip file in memory: `save_export` is for a large one."""
    return Call("POST", f"{_user(user)}/exports", results.Archive, media=ZIP)


def save_export(user: str, file: Path) -> Call[results.SavedFile]:
    """Write everything that is stored of this person into one new zip file. It is theirs: guard it.

    The file appears when all of it is there, readable by its owner alone; nothing holds all of it in memory. Raises
    FileExistsError, before anything is sent, and whatever OSError the disk has. Each try is an entry in the audit log.
    """
    return Call("POST", f"{_user(user)}/exports", results.SavedFile, media=ZIP, into=file)


def reset_receipt(user: str, reset_id: str) -> Call[results.ResetReceipt]:
    """The receipt of an earlier reset."""
    return Call("GET", f"{_user(user)}/personalization/resets/{segment('reset', reset_id)}", results.ResetReceipt)


def explanation(user: str) -> Call[results.Explanation]:
    """What was learned about this person, along which directions, and at what cost in privacy."""
    return Call("GET", f"{_user(user)}/explanation", results.Explanation)


def health() -> Call[results.Health]:
    """Whether the process answers at all."""
    return Call("GET", "/healthz", results.Health)


def ready() -> Call[results.Readiness]:
    """Whether it can serve. Raises ApiUnavailableError if its store can't be reached."""
    return Call("GET", "/readyz", results.Readiness)


def _person(user: str | None, domain: str | None, mode: Mode, strength: float | None, explain: bool) -> dict[str, Any]:
    return {
        "user": user,
        "domain": domain,
        "personalization": None if mode == "auto" else mode,
        "strength": strength,
        "explain": explain or None,
    }


def _documents(documents: Sequence[str | Document]) -> list[Any]:
    if isinstance(documents, str):
        raise InvalidInputError("the documents are one text.", mend="Pass a list of texts.")
    return [document if isinstance(document, str) else given(asdict(document)) for document in documents]


def _signal(signal: Signal) -> dict[str, Any]:
    body = given(asdict(signal))
    if signal.occurred_at is not None:
        if signal.occurred_at.tzinfo is None:
            raise InvalidInputError("occurred_at has no time zone.", mend="Pass one, such as datetime.now(UTC).")
        body["occurred_at"] = signal.occurred_at.isoformat()
    return {"id": new_id(), **body}


def _user(user: str) -> str:
    return f"/v1/users/{segment('user', user)}"
