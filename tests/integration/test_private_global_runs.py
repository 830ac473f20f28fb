"""A private training of the global model as a whole run: its order, its charge, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_home import TENANT, Home, Quiet, RecordedNoise, WatchedStore, settings_at
from typer.testing import CliRunner

from idiolect.consent import ConsentChange
from idiolect.errors import (
    BudgetExceededError,
    ConfigurationError,
    ConflictError,
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
)
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.manifest import GLOBAL_OWNER, Version
from idiolect.registry.weights import verify_version
from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect.signals.importers.sample import load_sample
from idiolect.stores.ports import ImportOptions, StoredVersion
from idiolect_adapters.preference import load_model
from idiolect_adapters.training.build_private import head_of
from idiolect_adapters.training.private_global import PrivateGlobal
from idiolect_adapters.training.public_space import DIRECTIONS, public_space
from idiolect_services import private_global, training_runs
from idiolect_services.cli.train import app
from idiolect_services.datasets import import_dataset, sample_folder
from idiolect_services.private_global import BASIS, REWARD, PrivateGlobalTrainer, PrivateTraining, Source, merged, only
from idiolect_services.wiring import Installation, open_installation
from tasteful_world import as_dataset, make_world

OTHER = "umbrella"  # a tenant with private data
PEOPLE, ABSENT = list(range(12)), list(range(12, 16))  # who opted in, and who did not
READS = ("shared_data", "personal_snapshot", "evaluation_data")


def people_of(installation: Installation, tenant: str, numbers: list[int]) -> list[str]:
    return sorted(installation.pseudonym(tenant, f"person {number}") for number in numbers)


def fill(installation: Installation, tenant: str) -> None:
    """Private data of PEOPLE and ABSENT."""
    everybody = [*PEOPLE, *ABSENT]
    dataset = as_dataset(make_world(len(everybody), prompts=8), everybody, [])
    import_dataset(installation, tenant, dataset, ImportOptions(public=False, opt_in=False), lambda *_: None)
    for person in people_of(installation, tenant, PEOPLE):
        installation.store.change_subject(tenant, person, ConsentChange(opted_in=True), installation.clock.now())


def train(
    installation: Installation, *sources: Source, store: Any = None, carry: bool = True, **settings: Any
) -> PrivateTraining:
    changed = replace(
        installation,
        store=store or installation.store,
        settings=installation.settings.model_copy(update=settings),
    )
    return training_runs.train_private_global_model(changed, TENANT, sources or (Source(OTHER),), Quiet(), carry=carry)


def released(installation: Installation, training: PrivateTraining, tenant: str = OTHER) -> StoredVersion:
    (release,) = [release for name, release in training.releases if name == tenant]
    (stored,) = installation.store.versions(tenant, release=release)
    return stored


@pytest.fixture
def filled(home: Home) -> Home:
    """A tenant with public data and a live model, and another one with private data."""
    fill(home.installation, OTHER)
    return home


@pytest.fixture
def first(tiny_bert: Path, tmp_path: Path) -> Iterator[Installation]:
    """An installation without any global model."""
    with open_installation(settings_at(tmp_path / "first", tiny_bert)) as installation:
        installation.store.create_tenant(TENANT, installation.clock.now())
        fill(installation, OTHER)
        yield installation


# What it starts from


def test_it_goes_on_with_the_tuned_encoder_of_the_live_model(filled: Home) -> None:
    """Twice: a private model's card passes on that its encoder was tuned."""
    installation, probe = filled.installation, [("how?", "warm reply")]
    tuned = training_runs.train_global_model(installation, TENANT, Quiet(), tune=True)
    assert not np.array_equal(tuned.backbone.features(probe), filled.model.backbone.features(probe))
    for _ in range(2):
        before = installation.load_live_model().digest
        model = train(installation, allow_weak_privacy=True).model
        assert np.array_equal(model.backbone.features(probe), tuned.backbone.features(probe))
        assert model.card["training"]["before"] == before


# The order


def test_people_are_charged_before_they_are_read_and_settled_once_the_model_is_live(filled: Home) -> None:
    store = WatchedStore(filled.store)

    def check(_tenant: str, **options: Any) -> None:
        assert options.get("public_only") or "reserve" in store.calls, "private data was read before it was charged for"

    store._before = {"shared_data": check}
    train(filled.installation, store=store)
    steps = [call for call in store.calls if call in ("reserve", "publish", "set_global", "settle")]
    assert steps == ["reserve", "publish", "set_global", "settle"]
    (run,) = filled.store.runs(OTHER)
    assert (run.unit, run.purpose, run.accounts, run.state) == ("subject", "global model", len(PEOPLE), "settled")
    assert not filled.store.runs(TENANT), "nobody of a tenant that was not read is charged"


def test_only_people_who_opted_in_are_charged_and_read(filled: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    shipped = private_global.release_private_global

    def watched(data: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(data.subjects)
        return shipped(data, *args, **kwargs)

    monkeypatch.setattr(private_global, "release_private_global", watched)
    refused, *granted = people_of(filled.installation, OTHER, PEOPLE)
    now = filled.installation.clock.now()
    filled.store.reserve(OTHER, "subject", "earlier", GaussianEvent(0.1, 1), [refused], 1e9, now)
    training = train(filled.installation)
    assert seen == [len(granted)]
    assert training.refused == 1
    assert all(filled.store.account(OTHER, "subject", person).spent_rho > 0 for person in granted)
    for person in people_of(filled.installation, OTHER, ABSENT):
        assert filled.store.account(OTHER, "subject", person).spent_rho == 0


def test_a_spent_budget_is_refused_before_anybody_is_read_and_the_live_model_stays(filled: Home) -> None:
    live = filled.store.live_global()
    now, everybody = filled.installation.clock.now(), people_of(filled.installation, OTHER, PEOPLE)
    filled.store.reserve(OTHER, "subject", "earlier", GaussianEvent(0.1, 1), everybody, 1e9, now)
    store = WatchedStore(filled.store)
    with pytest.raises(BudgetExceededError, match=r"training the global model would raise epsilon from .* 12 "):
        train(filled.installation, store=store)
    assert [args[0] for args, _ in [store.arguments["shared_data"]]] == [TENANT], "only public texts were read"
    assert filled.store.live_global() == live
    assert not filled.store.releases(OTHER)


@pytest.mark.parametrize("where", ["publish", "set_global", "settle"])
def test_a_kill_leaves_the_charge_and_a_model_that_serves(filled: Home, where: str) -> None:
    before = filled.store.live_global()

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(filled.installation, store=WatchedStore(filled.store, {where: die}))
    spent = filled.store.account(OTHER, "subject", people_of(filled.installation, OTHER, PEOPLE)[0]).spent_rho
    assert spent > 0
    assert (filled.store.live_global() == before) == (where != "settle")
    again = train(filled.installation)  # and the same call again goes through, at its own cost
    assert filled.store.live_global() == again.model.digest
    assert filled.installation.load_live_model().digest == again.model.digest


# What is left behind


def test_the_model_is_what_was_signed_and_public_arithmetic_and_nothing_else(first: Installation) -> None:
    """No array of the model depends on private data but through the two tensors of the signed release."""
    training = train(first)
    stored = released(first, training)
    tensors = verify_version(stored.template, stored.version, first.signer)
    assert set(tensors) == {REWARD, BASIS}
    model = load_model(first.models, training.model.digest)
    public = load_sample(sample_folder()).items
    pooled = model.backbone.features([(item.prompt, item.text) for item in public])
    again = head_of(
        public_space(public, pooled, None),
        PrivateGlobal(tensors[REWARD][0], tensors[BASIS]),
        model.domain_rank,
    )
    found = model.head.tensors()
    assert set(found) == set(again.tensors())
    for name, tensor in again.tensors().items():
        assert np.array_equal(found[name], tensor), name


def test_on_top_of_a_model_what_that_one_knew_stays_as_it_was(filled: Home) -> None:
    before = filled.model.head.tensors()
    after = train(filled.installation).model.head.tensors()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"reward", "user_basis", "domain_basis"}


def test_the_card_of_the_model_counts_no_private_people_or_texts(filled: Home) -> None:
    training = train(filled.installation)
    said = training.model.card["training"]
    assert said["privacy"] == training.privacy.to_json()
    assert not {"people", "items", "tenants", "runs"} & set(said)
    assert said["datasets"] == filled.model.card["training"]["datasets"]
    assert said["before"] == filled.model.digest
    assert training.model.temperature == 1.0


def test_the_release_is_signed_verified_and_says_what_was_protected(filled: Home) -> None:
    training = train(filled.installation)
    stored = released(filled.installation, training)
    template = stored.template
    assert (template.scope, template.global_digest) == ("global", filled.store.live_global())
    assert (template.privacy.unit, template.privacy.delta) == ("subject", 1e-5)
    assert template.privacy.epsilon == pytest.approx(4.0, rel=1e-6)
    assert "second moment" in template.privacy.mechanism
    (run,) = filled.store.runs(OTHER)
    assert (template.run, template.privacy.event) == (run.id, run.event)
    nicer = replace(template, privacy=replace(template.privacy, epsilon=0.1))
    with pytest.raises(CorruptArtifactError):
        verify_version(nicer, stored.version, filled.installation.signer)


def test_a_person_is_told_what_the_release_cost_and_a_reset_names_it(filled: Home) -> None:
    release = train(filled.installation).releases[0][1]
    person = people_of(filled.installation, OTHER, PEOPLE)[0]
    (charge,) = filled.store.charges(OTHER, person)
    assert (charge.release, charge.run.purpose) == (release, "global model")
    (contribution,) = filled.store.contributions(OTHER, person)
    assert (contribution.release, contribution.scope, contribution.domain) == (release, "global", None)
    record = filled.store.apply_reset(OTHER, person, "r-1", plan_reset("all"), filled.installation.clock.now())
    assert record.shared_releases == (release,)
    assert person not in filled.store.contributors(OTHER, "chat")


def test_what_the_mechanism_released_can_not_be_made_live_or_revoked_by_itself(filled: Home) -> None:
    training = train(filled.installation)
    stored, now = released(filled.installation, training), filled.installation.clock.now()
    release = stored.version.release
    for attempt in (
        lambda: filled.store.promote(OTHER, stored.version.id, now, reason="r", actor="a"),
        lambda: filled.store.promote_release(OTHER, release, now, reason="r", actor="a"),
        lambda: filled.store.revoke_release(OTHER, release, now, reason="r", actor="a"),
    ):
        with pytest.raises(ConflictError, match="global model"):
            attempt()
    assert filled.store.resolve(OTHER, None, "chat").domain is None
    assert not filled.store.adapters(OTHER)


@pytest.mark.parametrize(
    ("scope", "owner", "staged"),
    [("global", "chat", True), ("domain", GLOBAL_OWNER, True), ("global", GLOBAL_OWNER, False)],
)
def test_no_other_release_takes_the_place_of_a_global_one(filled: Home, scope: Any, owner: str, staged: bool) -> None:
    stored = released(filled.installation, train(filled.installation))
    template = replace(stored.template, scope=scope)
    version: Version = replace(stored.version, id="v-2", release="r-2", domain=owner)
    with pytest.raises(InvalidInputError):
        filled.store.publish(
            "r-2", template, [version], filled.installation.clock.now(), reason="r", actor="a", staged=staged
        )


def test_adapters_are_carried_to_the_private_model(filled: Home) -> None:
    filled.trainer().train_users(TENANT)
    told: list[Any] = []
    training_runs.train_private_global_model(
        filled.installation, TENANT, (Source(OTHER),), Quiet(), on_carried=told.append
    )
    assert told[0].carried == len(filled.new_people)
    assert all(filled.live(person) for person in filled.new_people)


# Who is read


def test_each_tenant_charges_its_own_people_and_keeps_a_release_of_its_own(filled: Home) -> None:
    filled.say(filled.new_people[0], "one")
    training = train(filled.installation, Source(OTHER), Source(TENANT))
    assert [tenant for tenant, _ in training.releases] == [OTHER, TENANT]
    (mine,), (others,) = filled.store.runs(TENANT), filled.store.runs(OTHER)
    assert others.accounts == len(PEOPLE)
    domains = filled.store.domains(TENANT)
    assert mine.accounts == len({person for name in domains for person in filled.store.contributors(TENANT, name)})
    assert {released(filled.installation, training, tenant).template.run for tenant in (TENANT, OTHER)} == {
        mine.id,
        others.id,
    }


def test_only_the_domains_that_were_named_are_read(filled: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: set[str] = set()
    shipped = private_global.groups
    monkeypatch.setattr(
        private_global, "groups", lambda items: prompts.update(item.domain for item in items) or shipped(items)
    )
    training = train(filled.installation, Source(OTHER, ("news",)))
    assert prompts == {"news"}
    assert released(filled.installation, training).template.data_window.endswith("in news")


def part(*people: str) -> SharedData:
    """One rating and one comparison of each."""
    items = tuple(Item("chat", "how", text) for text in ("one", "two"))
    who = np.arange(len(people), dtype=np.int32)
    said = Comparisons(who, np.zeros_like(who), np.ones_like(who), np.ones(len(who), np.float32))
    return SharedData(items, people, Ratings(who, who % 2, np.ones(len(who), np.float32)), said)


def test_of_people_who_were_refused_nothing_is_left() -> None:
    left = only(part("x", "y", "z"), {"x", "z", "unheard of"})
    assert left.people == ("x", "z")
    assert left.comparisons.person_C.tolist() == left.ratings.person_R.tolist() == [0, 1]
    assert left.ratings.item_R.tolist() == [0, 0]


def test_a_person_in_two_domains_or_shards_is_one_subject_and_in_two_tenants_two() -> None:
    whole = merged([("a", part("x", "y")), ("a", part("y", "z")), ("b", part("x"))])
    assert whole.people == ("a/x", "a/y", "a/z", "b/x")
    assert whole.comparisons.person_C.tolist() == [0, 1, 1, 2, 3]
    assert whole.comparisons.chosen_C.tolist() == [0, 0, 2, 2, 4]
    assert whole.ratings.person_R.tolist() == [0, 1, 1, 2, 3]
    assert whole.ratings.item_R.tolist() == [0, 1, 2, 3, 4]
    assert len(whole.items) == 6


def test_nobody_to_learn_from_is_said_and_charges_nothing(filled: Home) -> None:
    filled.store.create_tenant("empty", filled.installation.clock.now())
    with pytest.raises(NotFoundError, match="nobody who opted in"):
        train(filled.installation, Source("empty"))
    assert not filled.store.runs("empty")


# Noise and bad input


def test_every_release_draws_its_noise(filled: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = RecordedNoise()
    monkeypatch.setattr(training_runs, "PrivateGlobalTrainer", lambda *args: PrivateGlobalTrainer(*args, noise=noise))
    event = train(filled.installation).privacy.event
    assert len(noise.shapes) == event.steps
    assert noise.shapes[0] == (1,)
    assert noise.shapes[1:-1] == [(1, DIRECTIONS)] * (event.steps - 2)
    assert noise.shapes[-1] == (DIRECTIONS * (DIRECTIONS + 1) // 2,)


def test_a_process_that_runs_no_test_refuses_noise_that_is_not_secure(
    filled: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(ConfigurationError, match="not a secure source"):
        PrivateGlobalTrainer(filled.installation, filled.model.backbone, (), None, noise=RecordedNoise())


@pytest.mark.parametrize("words", [("--epsilon", "0"), ("--epsilon", "nan"), ("--epsilon", "1000"), ("--delta", "1")])
def test_a_number_that_protects_nothing_is_refused_before_anything_is_charged(
    filled: Home, words: tuple[str, str]
) -> None:
    home = str(filled.installation.root)
    result = CliRunner().invoke(app, ["global", "--private", "--read", OTHER, "--home", home, *words])
    assert isinstance(result.exception, ConfigurationError | InvalidInputError)
    assert not filled.store.runs(OTHER)


def test_a_private_training_is_not_asked_to_tune_an_encoder(filled: Home) -> None:
    home = str(filled.installation.root)
    result = CliRunner().invoke(app, ["global", "--private", "--read", OTHER, "--home", home, "--tune"])
    assert isinstance(result.exception, InvalidInputError)
    assert not filled.store.runs(OTHER)


@pytest.mark.parametrize("words", [("--epsilon", "2"), ("--read", OTHER), ("--domain", "chat"), ("--delta", "1e-6")])
def test_options_of_a_private_training_are_refused_for_a_public_one(filled: Home, words: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["global", "--home", str(filled.installation.root), *words])
    assert isinstance(result.exception, InvalidInputError)
    assert "--private" in result.exception.mend
