"""What must hold, checked on what leaves the servers and on what is stored, with nothing that the servers decide by.

It knows what it has seen answered and published, and how a score is defined. Whatever does not fit is a violation.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulated_server import ServerProcess, SlowModel

from idiolect.errors import CorruptArtifactError
from idiolect.registry.signing import Signer
from idiolect.registry.weights import load_weights, verify_version

CLOSE = 1e-9  # scores are sums of a dozen numbers of about 1

Person = tuple[str, str]  # (tenant, subject)


class ViolationError(AssertionError):
    """Names the invariant that does not hold."""


@dataclass(frozen=True, slots=True)
class Published:
    tenant: str
    subject: str
    domain: str
    generation: int
    release: str
    weights: tuple[float, ...]  # as they are to be multiplied


@dataclass(frozen=True, slots=True)
class Ask:
    """A ranking, as its client sent it. `number` counts all that happened before it was sent."""

    tenant: str
    subject: str | None
    domain: str
    query: str
    texts: tuple[str, ...]
    number: int


class Oracle:
    def __init__(
        self,
        store: Any,
        tables: sqlite3.Connection,
        signer: Signer,
        budgets: dict[str, float],
        now: Callable[[], float],
    ) -> None:
        self._store, self._tables, self._signer = store, tables, signer
        self._budgets, self._now = budgets, now
        self.number = 0  # of what happened
        self.trace: list[str] = []
        self.violation: str | None = None  # the first one
        self.seen: Counter[str] = Counter()  # what the run really did
        self._fence: dict[Person, int] = defaultdict(int)  # generations that were answered
        self._out: set[Person] = set()  # who was told that they are out, and has not asked to be in since
        self._published: dict[str, Published] = {}
        self._revoked: dict[str, int] = {}  # release -> number of the answer
        self._spent: dict[tuple[str, Person], float] = defaultdict(float)
        self._plain: dict[tuple[str | None, str, str], float] = {}  # (domain version, query, text) -> score
        self._verified: set[str] = set()
        self.damaged: set[str] = set()  # versions whose stored bytes were changed
        self._askers: dict[tuple[ServerProcess, str], set[str]] = defaultdict(set)  # tenants, by text

    def note(self, what: str) -> None:
        self.number += 1
        self.trace.append(f"{self._now() * 1000:9.3f} ms  {what}")

    def demand(self, holds: bool, invariant: str, details: str = "") -> None:
        if not holds:
            self.violation = self.violation or f"{invariant} ({details})"
            self.note(f"VIOLATION: {invariant} ({details})")
            raise ViolationError(self.violation)

    def broke(self, error: BaseException) -> None:
        """A server's own failure: it would have answered 500."""
        if self.violation is None:
            self.violation = f"a server does not fail ({error!r})"
            self.note(f"VIOLATION: {self.violation}")

    # What the store did

    def committed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if name == "publish":
            release, template, versions = args[:3]
            fenced = set(result.fenced)
            for version in versions:
                if version.subject and version.subject in fenced:
                    self.seen["fenced"] += 1
                    continue
                self.learn(template, version)
            self.seen["published"] += 1
            self.note(f"committed: release {release} of {len(versions)}, {len(fenced)} fenced")
        elif name == "standing_each":
            self.seen["remembered"] += len(result)
        elif name in ("apply_reset", "change_subject", "revoke_release", "reserve", "quarantine"):
            self.note(f"committed: {name}")

    def learn(self, template: Any, version: Any) -> None:
        """Of a version that was published. Its weights are read here, from what was handed over."""
        (tensor,) = load_weights(version.weights, template.tensors).values()
        scale = template.alpha / template.rank
        weights = tuple(float(weight) * scale for weight in tensor[0])
        person = (template.tenant, version.subject)
        self._published[version.id] = Published(
            template.tenant, version.subject, version.domain, version.generation, version.release, weights
        )
        if version.subject:
            self.demand(
                version.generation >= self._fence[person],
                "nothing is published for an older generation than an answered reset",
                f"{version.id} of generation {version.generation}, answered: {self._fence[person]}",
            )

    def releases(self, tenant: str) -> set[str]:
        return {one.release for one in self._published.values() if one.tenant == tenant}

    # What was answered

    def fenced(self, person: Person, generation: int, *, out: bool) -> None:
        """A reset, erasure or withdrawal was answered."""
        self.note(f"answered: {person} is at generation {generation}{', out' if out else ''}")
        self.seen["fences"] += 1
        self._fence[person] = max(self._fence[person], generation)
        if out:
            self._out.add(person)

    def asks_in(self, person: Person) -> None:
        """From now on the person may be in again."""
        self._out.discard(person)

    def revoked(self, release: str) -> None:
        self.note(f"answered: release {release} is revoked")
        self.seen["revoked"] += 1
        self._revoked.setdefault(release, self.number)

    def ranked(self, server: ServerProcess, ask: Ask, answer: dict[str, Any]) -> None:
        """A ranking leaves."""
        said = answer["personalization"]
        self.note(f"{server.name} ranks for {ask.tenant} {ask.subject}: {said['reason']} {said['generation']}")
        self.seen[said["reason"]] += 1
        person = (ask.tenant, ask.subject or "")
        if said["generation"] is not None:
            self.demand(
                said["generation"] >= self._fence[person],
                "nothing older than an answered reset is served",
                f"{person}: {said['generation']} after {self._fence[person]}",
            )
        domain = None if said["domain"] is None else self._known(ask, said["domain"])
        user = None if said["adapter"] is None else self._known(ask, said["adapter"])
        self.demand(said["applied"] == (user is not None), "what is applied is named", str(said))
        if domain is not None:
            self.demand(domain.domain == ask.domain, "a domain's adapter serves that domain", said["domain"])
        if user is not None:
            self.demand(user.subject == ask.subject, "a person's adapter serves that person", said["adapter"])
            self.demand(
                user.generation == said["generation"] and user.generation >= self._fence[person],
                "nothing older than an answered reset is served",
                f"{person}: a version of generation {user.generation} after {self._fence[person]}",
            )
            self.demand(person not in self._out, "who is out gets nothing personal", str(person))
        for result in answer["results"]:
            self._check_score(ask, result, said, domain, user)
        self._check_caches(server, ask)

    def _known(self, ask: Ask, version: str) -> Published:
        found = self._published.get(version)
        self.demand(found is not None, "what is served was published", version)
        assert found is not None
        self.demand(found.tenant == ask.tenant, "no version crosses tenants", f"{version} in {ask.tenant}")
        revoked = self._revoked.get(found.release)
        self.demand(
            revoked is None or ask.number < revoked, "what was revoked before a request is not served to it", version
        )
        return found

    def _check_score(
        self, ask: Ask, result: dict[str, Any], said: dict[str, Any], domain: Published | None, user: Published | None
    ) -> None:
        """The sum of its parts; and, without anything personal, bit for bit that of everybody else."""
        text = ask.texts[result["index"]]
        row = SlowModel.known_row(ask.query, text)
        k, m = SlowModel.user_rank, SlowModel.domain_rank
        directions_K, directions_M = row[1 : 1 + k], row[1 + k : 1 + k + m]
        expected = row[0]
        if domain is not None:
            expected += math.fsum(w * f for w, f in zip(domain.weights, directions_M, strict=True))
        if user is not None:
            expected += said["strength"] * math.fsum(w * f for w, f in zip(user.weights, directions_K, strict=True))
        self.demand(
            math.isclose(result["score"], expected, rel_tol=CLOSE, abs_tol=CLOSE),
            "a score is that of the versions it names",
            f"{result['score']} instead of {expected}, for {said}",
        )
        if user is None:
            plain = self._plain.setdefault((said["domain"], ask.query, text), result["score"])
            exact = row[0] if domain is None else plain
            self.demand(
                result["score"] == exact, "without an adapter a score is bit for bit that of a stranger", str(said)
            )

    def _check_caches(self, server: ServerProcess, ask: Ask) -> None:
        """Each tenant has its texts computed: an answer from another's cache would tell what the other one sent."""
        for text in ask.texts:
            self._askers[server, text].add(ask.tenant)
            self.demand(
                len(self._askers[server, text]) <= server.model.computed[text],
                "no cache is shared between tenants",
                f"{text!r} was computed {server.model.computed[text]} times",
            )

    # What is stored

    def audit(self) -> None:
        """Between two steps of everybody: the tables as they are, read past every server and past the store."""
        self._check_ledger()
        self._check_versions()
        self._check_pointers()

    def _check_ledger(self) -> None:
        for tenant, unit, subject, spent in self._rows("SELECT tenant, unit, subject, spent_rho FROM ledger_accounts"):
            key = (unit, (tenant, subject))
            self.demand(spent >= self._spent[key], "what was spent never falls", f"{key}: {spent}")
            self.demand(spent <= self._budgets[unit] * (1 + CLOSE), "no budget is passed", f"{key}: {spent}")
            self._spent[key] = spent
        found = {(tenant, subject) for tenant, subject in self._rows("SELECT tenant, subject FROM ledger_accounts")}
        lost = {person for _, person in self._spent} - found
        self.demand(not lost, "what was spent never falls", f"nothing is known of {lost}")

    def _check_versions(self) -> None:
        for tenant, subject, version, generation in self._rows(
            "SELECT tenant, subject, id, generation FROM versions WHERE subject <> ''"
        ):
            self.demand(
                generation >= self._fence[tenant, subject],
                "an answered reset leaves no older version behind",
                f"{version} of generation {generation}, answered: {self._fence[tenant, subject]}",
            )

    def _check_pointers(self) -> None:
        for tenant, subject, domain, version in self._rows(
            "SELECT tenant, subject, domain, version FROM pointers WHERE name = 'live'"
        ):
            if version in self._verified or version in self.damaged:
                continue  # a damaged one is not noticed yet; what is served of it is checked all the same
            stored = self._store.version(tenant, version)
            self.demand(stored is not None, "a pointer leads to a version", version)
            owner = (stored.template.tenant, stored.version.subject, stored.version.domain)
            self.demand(owner == (tenant, subject, domain), "a pointer leads to its owner's version", version)
            try:
                verify_version(stored.template, stored.version, self._signer)
            except CorruptArtifactError as error:
                self.demand(False, "a pointer leads to a verified version", f"{version}: {error}")
            self._verified.add(version)

    def _rows(self, query: str) -> list[Any]:
        return self._tables.execute(query).fetchall()
