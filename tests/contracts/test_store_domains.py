"""Consent for single domains: what is served, kept and learned from."""

from __future__ import annotations

import pytest
from store_samples import (
    EVENT,
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    give_feedback,
    items,
    opt_in,
    pairs,
    publish_user,
    shown,
    signal,
)

from idiolect.consent import ConsentChange, DomainChange, DomainChoice
from idiolect.errors import ConsentError, InvalidInputError, PreconditionError
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import ImportOptions, Store

OUT = ConsentChange(domains=(DomainChange("chat", opted_in=False),))
IN = ConsentChange(domains=(DomainChange("chat", opted_in=True),))


def leave(store: Store, person: str = "ann", *, minutes: float = 5) -> None:
    store.change_subject(TENANT, person, OUT, at(minutes))


def speak(store: Store, number: int, domain: str, *, minutes: float) -> None:
    inference = shown(store, f"i{number}", domain=domain, texts=(f"{domain}?", "a", "b"), minutes=minutes)
    store.add_feedback(TENANT, "ann", signal(f"s{number}", inference, (0, 1), minutes=minutes), at(minutes))


def prompts(store: Store) -> set[str]:
    return {item.prompt for item in store.personal_snapshot(TENANT).items}


def test_choices_are_remembered_in_order_and_those_that_say_nothing_are_not(store: Store) -> None:
    wanted = (DomainChange("voice", strength=0.25), DomainChange("chat", opted_in=False), DomainChange("mail", True))
    state = store.change_subject(TENANT, "ann", ConsentChange(opted_in=True, domains=wanted), at(1))
    assert state.domains == (DomainChoice("chat", False), DomainChoice("voice", True, 0.25))
    assert store.subject(TENANT, "ann") == state
    assert store.subjects(TENANT) == [state]
    again = store.change_subject(TENANT, "ann", ConsentChange(domains=(DomainChange("voice", strength=1.0),)), at(2))
    assert again.domains == (DomainChoice("chat", False),)


def test_a_stale_revision_changes_no_domain(store: Store) -> None:
    opt_in(store, "ann")
    with pytest.raises(PreconditionError):
        store.change_subject(TENANT, "ann", OUT, at(1), if_revision=0)
    assert store.subject(TENANT, "ann").domains == ()


def test_more_domains_than_anyone_needs_are_refused_and_nothing_changes(store: Store) -> None:
    opt_in(store, "ann")
    many = tuple(DomainChange(f"d{number}", opted_in=False) for number in range(65))
    with pytest.raises(InvalidInputError, match="64"):
        store.change_subject(TENANT, "ann", ConsentChange(domains=many), at(1))
    assert store.subject(TENANT, "ann").domains == ()


def test_who_left_a_domain_is_personalised_elsewhere_alone(store: Store) -> None:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, "ann")
    leave(store)
    publish_user(store, "v1", generation=1)
    assert store.resolve(TENANT, "ann", "chat").user is None
    elsewhere = store.resolve(TENANT, "ann", "voice").user
    assert elsewhere is not None
    assert elsewhere.id == "v1"
    store.change_subject(TENANT, "ann", IN, at(9))
    assert store.resolve(TENANT, "ann", "chat").user == elsewhere


def test_leaving_a_domain_forgets_the_adapter_that_had_learned_from_it_once(store: Store) -> None:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, "ann")
    publish_user(store, "v1")
    leave(store)
    state = store.subject(TENANT, "ann")
    assert (state.opted_in, state.generation) == (True, 1)
    assert store.version(TENANT, "v1") is None
    assert publish_user(store, "v2", generation=0).fenced == ("ann",)
    leave(store, minutes=6)
    assert store.subject(TENANT, "ann").generation == 1


def test_leaving_a_domain_without_having_opted_in_erases_nothing_and_holds_later(store: Store) -> None:
    leave(store)
    assert store.subject(TENANT, "ann").generation == 0
    opt_in(store, "ann", minutes=6)
    assert not store.subject(TENANT, "ann").agrees_in("chat")


def test_comparisons_of_a_domain_that_was_left_are_gone_and_stay_gone(store: Store) -> None:
    opt_in(store, "ann")
    speak(store, 1, "chat", minutes=1)
    speak(store, 2, "voice", minutes=2)
    assert prompts(store) == {"chat?", "voice?"}
    leave(store)
    assert prompts(store) == {"voice?"}
    assert store.personal_snapshot(TENANT).generation_P == (1,)
    assert store.contributors(TENANT, "chat") == []
    assert store.shared_data(TENANT, domain="chat").people == ()
    store.change_subject(TENANT, "ann", IN, at(9))
    assert prompts(store) == {"voice?"}
    assert store.inference(TENANT, "i1") is None


def test_who_left_the_only_domain_they_spoke_in_is_not_trained(store: Store) -> None:
    opt_in(store, "ann", "bob")
    give_feedback(store, "ann")
    give_feedback(store, "bob")
    leave(store)
    assert store.trainable(TENANT) == ["bob"]
    assert store.training_queue(min_new=1) == [(TENANT, "bob")]


def test_who_left_a_domain_is_learned_afresh_from_the_others(store: Store) -> None:
    opt_in(store, "ann")
    for number in range(3):
        speak(store, number, "voice", minutes=1)
    speak(store, 9, "chat", minutes=1)
    store.mark_trained(TENANT, ["ann"], at(2))
    assert store.training_queue(min_new=1) == []
    leave(store)
    assert store.training_queue(min_new=3) == [(TENANT, "ann")]
    assert store.training_queue(min_new=4) == []


def test_new_comparisons_elsewhere_still_train_shared_models(store: Store) -> None:
    opt_in(store, "ann")
    leave(store)
    speak(store, 1, "voice", minutes=6)
    assert store.contributors(TENANT, "voice") == ["ann"]


def test_feedback_in_a_domain_that_was_left_is_not_kept(store: Store) -> None:
    opt_in(store, "ann")
    leave(store)
    inference = shown(store, minutes=6)
    with pytest.raises(ConsentError, match="domain"):
        store.add_feedback(TENANT, "ann", signal("s1", inference, minutes=6), at(6))
    nobodys = shown(store, "i2", subject=None, minutes=6)
    with pytest.raises(ConsentError, match="domain"):
        store.add_feedback(TENANT, "ann", signal("s2", nobodys, minutes=6), at(6))
    assert store.training_queue(min_new=1) == []


def test_an_import_overrides_no_choice(store: Store) -> None:
    store.change_subject(TENANT, "ann", OUT, at(0))
    data = dataset(items=items(domain="chat"), adaptation=pairs("ann", 2))
    store.import_dataset(TENANT, data, OPTED_IN, at(1))
    state = store.subject(TENANT, "ann")
    assert state.opted_in
    assert not state.agrees_in("chat")
    assert store.personal_snapshot(TENANT).people == ()
    assert store.training_queue(min_new=1) == []


def test_public_data_of_a_domain_that_was_left_is_left_out_too(store: Store) -> None:
    public = ImportOptions(public=True, opt_in=False)
    store.import_dataset(TENANT, dataset(comparisons=pairs("ann", 1) + pairs("bob", 1)), public, at(0))
    store.change_subject(TENANT, "ann", OUT, at(1))
    assert store.shared_data(TENANT, public_only=True).people == ("bob",)


def test_a_reset_of_one_domain_keeps_the_signals_of_the_others(store: Store) -> None:
    opt_in(store, "ann")
    speak(store, 1, "chat", minutes=1)
    speak(store, 2, "voice", minutes=2)
    record = store.apply_reset(TENANT, "ann", "x1", plan_reset("feedback", "chat"), at(5))
    assert (record.domain, record.generation) == ("chat", 1)
    assert (record.erased["comparisons"], record.erased["signals"], record.erased["inferences"]) == (1, 1, 1)
    assert record.erased["texts"] == 3  # the prompt and the answers, which each domain keeps for itself
    assert record.to_json()["domain"] == "chat"
    assert store.reset(TENANT, "x1") == record
    assert prompts(store) == {"voice?"}
    assert store.inference(TENANT, "i1") is None
    assert store.inference(TENANT, "i2") is not None
    state = store.subject(TENANT, "ann")
    assert state.opted_in
    assert state.agrees_in("chat")


def test_a_reset_of_everything_in_one_domain_also_leaves_it(store: Store) -> None:
    opt_in(store, "ann")
    speak(store, 1, "chat", minutes=1)
    speak(store, 2, "voice", minutes=2)
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all", "chat"), at(5))
    state = store.subject(TENANT, "ann")
    assert state.opted_in
    assert not state.agrees_in("chat")
    assert state.agrees_in("voice")
    assert prompts(store) == {"voice?"}


def test_the_adapter_of_one_domain_can_not_be_reset_because_there_is_none() -> None:
    with pytest.raises(InvalidInputError, match="every domain"):
        plan_reset("adapter", "chat")


def test_a_reset_of_everything_forgets_the_choices(store: Store) -> None:
    opt_in(store, "ann")
    leave(store)
    store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(6))
    assert store.subject(TENANT, "ann").domains == ()


def test_leaving_a_domain_is_in_the_audit_log(store: Store) -> None:
    opt_in(store, "ann")
    store.change_subject(TENANT, "ann", OUT, at(1), actor="api key k")
    (entry,) = store.audit_entries(TENANT, limit=1)
    assert (entry.action, entry.actor) == ("consent.change", "api key k")
    assert '"domain":"chat"' in entry.details


def test_a_charge_for_a_domain_stays_when_it_is_left(store: Store) -> None:
    opt_in(store, "ann")
    store.reserve(TENANT, "subject", "domain chat", EVENT, ["ann"], 9.0, at(1))
    leave(store)
    assert store.account(TENANT, "subject", "ann").spent_rho == EVENT.rho
