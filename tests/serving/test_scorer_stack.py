from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import HashModel, K, M, World

from idiolect.consent import ConsentChange, SubjectState
from idiolect.errors import ConfigurationError, ConsentError, UnavailableError
from idiolect.ids import new_id
from idiolect.registry.resolution import Resolution, ResolvedVersion
from idiolect.resets.plan import plan_reset
from idiolect_adapters.runtime.bank import Owner
from idiolect_adapters.runtime.features import digested
from idiolect_services.gateway.turns import in_step
from idiolect_services.looks import answered
from idiolect_services.scorer import NotResidentError, Personalization, Scorer, ScoreRequest, Stack, sum_stack

TEXTS = [f"text {index}" for index in range(7)]
ROWS = np.array([HashModel.row("q", text) for text in TEXTS])


def ask(world: World, user: str | None = "ann", **fields: Any) -> ScoreRequest:
    pairs = tuple((digested("q"), digested(text)) for text in TEXTS)
    subject = None if user is None else world.pseudonym("acme", user)
    return ScoreRequest("acme", pairs, subject, **fields)


class StoreBetween:
    """The real store, with a hook before chosen calls: what happens while a request is under way."""

    def __init__(self, store: Any, **before: Any) -> None:
        self._store, self._before = store, before

    def __getattr__(self, name: str) -> Any:
        inner, hook = getattr(self._store, name), self._before.get(name)
        if hook is None:
            return inner

        def call(*args: Any, **kwargs: Any) -> Any:
            hook()
            return inner(*args, **kwargs)

        return call


def with_store(world: World, **before: Any) -> Scorer:
    return Scorer(StoreBetween(world.store, **before), world.features, world.bank)  # type: ignore[arg-type]


def down() -> None:
    raise UnavailableError("down.")


def test_a_score_is_the_exact_sum_of_its_parts(world: World) -> None:
    world.opt_in("ann", strength=0.5)
    user = world.publish_user("ann")
    domain = world.publish_domain("news")
    result = world.scorer.score(ask(world, domain="news", strength=0.5))
    said = result.personalization
    assert (said.applied, said.reason, said.strength) == (True, "applied", 0.25)
    assert (said.adapter, said.domain, said.generation) == (user.id, domain.id, 0)
    for index in range(len(TEXTS)):
        parts = result.global_N[index], result.domain_N[index], result.user_N[index]
        assert result.score_N[index] == (parts[0] + parts[1]) + parts[2]
    user_K = world.bank.weights(*_named(world, "user", user))
    domain_M = world.bank.weights(*_named(world, "domain", domain))
    expected = ROWS[:, 0] + ROWS[:, 1 + K :] @ domain_M + 0.25 * (ROWS[:, 1 : 1 + K] @ user_K)
    assert np.allclose(result.score_N, expected, rtol=1e-12)


def _named(world: World, scope: str, version: Any) -> tuple[Any, Any]:
    owner = Owner("acme", scope, version.subject or version.domain)  # type: ignore[arg-type]
    return owner, ResolvedVersion(version.id, version.release, version.weights_sha256, version.generation)


@pytest.mark.parametrize(
    ("user", "change", "publish", "fields", "reason"),
    [
        (None, None, False, {}, "no_user"),
        ("ann", None, False, {}, "unknown_user"),
        ("ann", {"opted_in": False, "strength": 0.5}, False, {}, "not_opted_in"),
        ("ann", {"paused": True}, True, {}, "paused"),
        ("ann", {}, False, {}, "no_adapter"),
        ("ann", {}, True, {"mode": "off"}, "off"),
        ("ann", {}, True, {"strength": 0.0}, "zero_strength"),
        ("ann", {"strength": 0.0}, True, {}, "zero_strength"),
        ("ann", {}, True, {}, "applied"),
    ],
)
def test_every_reason_is_said_and_without_an_adapter_the_score_is_exactly_the_models(
    world: World, user: str | None, change: dict[str, Any] | None, publish: bool, fields: dict[str, Any], reason: str
) -> None:
    if change is not None:
        world.opt_in("ann", **{key: value for key, value in change.items() if key != "paused"})
    if publish:
        world.publish_user("ann")
    if change and change.get("paused"):
        world.opt_in("ann", paused=True)
    result = world.scorer.score(ask(world, user, **fields))
    assert result.personalization.reason == reason
    assert result.personalization.applied == (reason == "applied")
    assert (result.score_N == ROWS[:, 0].tolist()) == (reason != "applied")
    if reason not in ("applied", "off"):
        with pytest.raises(ConsentError, match=reason):
            world.scorer.score(ask(world, user, **fields | {"mode": "required"}))


def test_a_revoked_release_is_served_no_more_and_the_one_before_is(world: World) -> None:
    world.opt_in("ann")
    first, second = world.publish_user("ann"), world.publish_user("ann", [0.5] * K)
    assert world.scorer.score(ask(world)).personalization.adapter == second.id
    world.store.revoke_release("acme", second.release, world.clock.now(), reason="bad", actor="t")
    assert world.scorer.score(ask(world)).personalization.adapter == first.id


def test_an_adapter_for_another_model_does_not_take_the_request_down(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann", basis_digest="f" * 64)
    world.publish_domain("news", basis_digest="f" * 64)
    result = world.scorer.score(ask(world, domain="news"))
    assert result.personalization.reason == "adapter_invalid"
    assert result.personalization.domain is None
    assert result.score_N == ROWS[:, 0].tolist()


def test_a_live_model_that_is_not_the_loaded_one_means_no_adapter_at_all(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    world.publish_domain("news")
    world.store.set_global("d" * 64, world.clock.now(), reason="t", actor="t")
    result = world.scorer.score(ask(world, domain="news"))
    assert result.personalization.reason == "model_changed"
    assert result.personalization.global_digest == world.model.digest
    assert result.score_N == ROWS[:, 0].tolist()


@pytest.mark.parametrize("error", [UnavailableError("down."), ConfigurationError("the database is damaged.")])
def test_a_store_that_is_down_leaves_the_global_ranking(world: World, error: Exception) -> None:
    def trouble() -> None:
        raise error

    world.opt_in("ann")
    world.publish_user("ann")
    scorer = with_store(world, resolve=trouble)
    result = scorer.score(ask(world))
    said = result.personalization
    assert (said.applied, said.reason, said.generation) == (False, "store_unavailable", None)
    assert result.score_N == ROWS[:, 0].tolist()
    with pytest.raises(UnavailableError):
        scorer.score(ask(world, mode="required"))


def test_a_store_that_goes_down_before_the_confirmation_takes_the_personal_part_away(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    result = with_store(world, subject=down).score(ask(world))
    assert result.personalization.reason == "store_unavailable"
    assert result.score_N == ROWS[:, 0].tolist()


@pytest.mark.parametrize("scope", ["adapter", "feedback", "all"])
def test_a_reset_while_a_request_is_computed_takes_its_personal_part_away(world: World, scope: Any) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    domain = world.publish_domain("news")
    subject = world.pseudonym("acme", "ann")

    def reset() -> None:
        world.store.apply_reset("acme", subject, new_id(), plan_reset(scope), world.clock.now())

    result = with_store(world, subject=reset).score(ask(world, domain="news"))
    said = result.personalization
    assert (said.applied, said.adapter, said.generation, said.domain) == (False, None, 1, domain.id)
    assert said.reason == ("not_opted_in" if scope == "all" else "no_adapter")
    assert result.score_N == world.scorer.score(ask(world, "stranger", domain="news")).score_N
    world.opt_in("ann")
    world.publish_user("ann")
    with pytest.raises(ConsentError):
        with_store(world, subject=reset).score(ask(world, mode="required"))


def test_a_pause_while_a_request_is_computed_counts_at_once(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    subject = world.pseudonym("acme", "ann")

    def pause() -> None:
        world.store.change_subject("acme", subject, ConsentChange(paused=True), world.clock.now())

    result = with_store(world, subject=pause).score(ask(world))
    assert result.personalization.reason == "paused"
    assert result.score_N == ROWS[:, 0].tolist()


def test_what_is_already_loaded_is_never_trusted(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    assert world.scorer.score(ask(world)).personalization.applied
    world.opt_in("ann", opted_in=False)
    assert world.bank.stats().entries == 1
    assert world.scorer.score(ask(world)).personalization.reason == "not_opted_in"


def test_an_erased_version_between_resolve_and_load_is_no_adapter(world: World) -> None:
    world.opt_in("ann")
    version = world.publish_user("ann")
    subject = world.pseudonym("acme", "ann")
    real = world.store.resolve("acme", subject, None)

    class Stale:
        def resolve(self, *_: Any) -> Resolution:
            return replace(real, user=replace(real.user, id="gone"))

        def subject(self, *_: Any) -> SubjectState:
            return world.store.subject("acme", subject)

    result = Scorer(Stale(), world.features, world.bank).score(ask(world))  # type: ignore[arg-type]
    assert version.id != "gone"
    assert result.personalization.reason == "no_adapter"


def test_try_score_waits_for_nothing_but_decides_everything(world: World) -> None:
    request = ask(world)
    assert world.scorer.try_score(request) is None
    features = world.scorer.compute_features(request)
    assert world.scorer.score(request, features) == world.scorer.try_score(request)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_bits_of_a_row_depend_on_no_other_row(
    rows: int, user_rank: int, domain_rank: int, personal: bool, on_domain: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    features = random.standard_normal((rows, 1 + user_rank + domain_rank)) * 10.0 ** random.integers(-8, 8)
    said = Personalization(personal, "applied", 0.7, "g", None, None, 0)
    stack = Stack(
        said,
        random.standard_normal(domain_rank) if on_domain else None,
        random.standard_normal(user_rank) if personal else None,
        True,
    )
    together = sum_stack(stack, features, user_rank)
    for index in range(rows):
        alone = sum_stack(stack, features[index : index + 1], user_rank)
        assert alone.score_N[0] == together.score_N[index]
        if not personal and not on_domain:
            assert alone.score_N[0] == features[index, 0]


def test_no_documents_or_ranks_are_confused(world: World) -> None:
    """The slow, obvious reference: one row at a time in plain Python."""
    world.opt_in("ann")
    version = world.publish_user("ann")
    weights = [float(w) for w in world.bank.weights(*_named(world, "user", version))]
    result = world.scorer.score(ask(world))
    for index, row in enumerate(ROWS.tolist()):
        slow = row[0] + sum(z * w for z, w in zip(row[1 : 1 + K], weights, strict=True))
        assert result.score_N[index] == pytest.approx(slow, rel=1e-12)
    assert len(ROWS[0]) == 1 + K + M


def test_people_who_are_looked_up_together_share_what_their_domain_has_and_later_ones_look_anew(world: World) -> None:
    for user in ("ann", "bob"):
        world.opt_in(user)
        world.publish_user(user)
    first = world.publish_domain("news")
    requests = [ask(world, user, domain="news") for user in ("ann", "bob")]
    alone = [world.scorer.score(request) for request in requests]

    def together() -> list[Any]:
        return in_step([world.scorer.trying(request, resident=True) for request in requests], answers)

    answers = partial(answered, world.store)
    before = world.bank.stats().hits
    assert [replace(found, looked_at=0.0) for found in together()] == [replace(one, looked_at=0.0) for one in alone]
    assert world.bank.stats().hits == before + 3  # two people, and one domain
    second = world.publish_domain("news")
    assert all(isinstance(found, NotResidentError) for found in together())  # it has to be loaded first
    world.scorer.score(requests[0])
    assert [found.personalization.domain for found in together()] == [second.id, second.id] != [first.id, first.id]
