"""The order of a training, and what is left of it when it is refused, killed, overtaken or raced."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_home import DOMAIN_RANK, NEW, RANK, TENANT, TRAINING, Home, RecordedNoise, WatchedStore, opened
from typer.testing import CliRunner

from idiolect.consent import ConsentChange
from idiolect.errors import BudgetExceededError, ConflictError, NotFoundError, UnavailableError
from idiolect.ids import new_id
from idiolect.privacy.accountant import epsilon_of_run
from idiolect.registry.weights import verify_version
from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import Item, PreferenceDataset, Rating
from idiolect.stores.ports import ImportOptions
from idiolect_adapters.runtime.features import digested
from idiolect_adapters.training.domain import SubjectComparisons, releases
from idiolect_services import trainer as trainer_module
from idiolect_services.cli import app
from idiolect_services.datasets import import_dataset
from idiolect_services.scorer import ScoreRequest
from idiolect_services.trainer import HEAD_B, Trainer, TrainingReport

READS = ("shared_data", "personal_snapshot", "evaluation_data")


def train(trainer: Trainer, what: str) -> TrainingReport:
    return trainer.train_users(TENANT) if what == "users" else trainer.train_domain(TENANT, "chat")


def exploding_until_reserved(store: Any) -> WatchedStore:
    """Every read of private data blows up unless its charge is in the ledger."""
    watched = WatchedStore(store)

    def check(*_: Any, **__: Any) -> None:
        assert "reserve" in watched.calls, "private data was read before it was charged for"

    watched._before = dict.fromkeys(READS, check)
    return watched


# The order


@pytest.mark.parametrize("what", ["users", "domain"])
def test_the_charge_comes_before_any_data_is_read(home: Home, what: str) -> None:
    store = exploding_until_reserved(home.store)
    train(home.trainer(store=store), what)
    steps = [call for call in store.calls if call in ("reserve", "publish", "settle", *READS)]
    assert steps == ["reserve", "personal_snapshot" if what == "users" else "shared_data", "publish", "settle"]


def test_only_who_was_charged_is_read(home: Home) -> None:
    home.overspend(home.person(NEW[0]))
    store = WatchedStore(home.store)
    home.trainer(store=store).train_users(TENANT)
    asked = store.arguments["personal_snapshot"][1]["subjects"]
    assert asked == [person for person in home.new_people if person != home.person(NEW[0])]


@pytest.mark.parametrize("what", ["users", "domain"])
def test_every_step_and_the_count_draw_their_noise(home: Home, what: str) -> None:
    noise = RecordedNoise()
    train(home.trainer(noise=noise), what)
    recipes = home.model.recipes
    if what == "users":
        steps = recipes.user.at(home.installation.settings.user_epsilon).steps
        assert noise.shapes == [(len(NEW), RANK)] * steps
    else:
        assert noise.shapes == [(1,)] + [(1, DOMAIN_RANK)] * recipes.domain.steps


@pytest.mark.parametrize("what", ["users", "domain"])
def test_two_trainings_on_the_same_data_never_give_the_same_weights(home: Home, what: str) -> None:
    for _ in range(2):
        train(home.trainer(domain_budget_epsilon=50.0, user_budget_epsilon=50.0), what)
    stored = home.store.versions(TENANT)
    assert len({version.version.weights_sha256 for version in stored}) == len(stored)


# What is published


@pytest.mark.parametrize("what", ["users", "domain"])
def test_every_published_version_verifies_and_says_what_was_done(home: Home, what: str) -> None:
    report = train(home.trainer(), what)
    stored = home.store.versions(TENANT)
    assert report.published == len(stored) == (len(NEW) if what == "users" else 1)
    (run,) = [run for run in home.store.runs(TENANT) if run.state == "settled"]
    user = what == "users"
    recipe = home.model.recipes.user.at(2.0) if user else home.model.recipes.domain
    wanted = home.installation.settings.user_epsilon if user else home.installation.settings.domain_epsilon
    for one in stored:
        tensors = verify_version(one.template, one.version, home.installation.signer)
        assert set(tensors) == {HEAD_B}
        assert tensors[HEAD_B].shape == (1, RANK if user else DOMAIN_RANK)
        template, privacy = one.template, one.template.privacy
        assert (template.tenant, template.run, template.global_digest) == (TENANT, run.id, home.model.digest)
        assert template.basis_digest == (home.model.user_basis_digest if user else home.model.domain_basis_digest)
        assert privacy.event == run.event
        assert privacy.unit == run.unit == ("comparison" if user else "subject")
        assert privacy.clip_norm == recipe.clip_norm
        assert privacy.steps == (recipe.steps if user else releases(recipe))
        assert privacy.epsilon == pytest.approx(wanted, rel=1e-6)
        assert privacy.epsilon == epsilon_of_run(run.event, privacy.delta) <= wanted
        assert report.epsilon == privacy.epsilon


def test_each_person_gets_their_own_version_and_pays_for_it(home: Home) -> None:
    report = home.trainer().train_users(TENANT)
    assert (report.published, report.refused, report.fenced) == (len(NEW), 0, 0)
    versions = {home.live(person) for person in home.new_people}
    assert len(versions) == len(NEW)
    assert None not in versions
    (run,) = home.store.runs(TENANT)
    assert all(home.spent(person) == run.event.rho for person in home.new_people)
    assert all(home.spent(home.person(number)) == 0.0 for number in TRAINING)


def test_a_domain_charges_everybody_it_reads_in_the_subjects_account(home: Home) -> None:
    contributors = home.store.contributors(TENANT, "chat")
    home.trainer().train_domain(TENANT, "chat")
    (run,) = home.store.runs(TENANT)
    assert len(contributors) == len(TRAINING) == run.accounts
    for person in contributors:
        assert home.spent(person, "subject") == run.event.rho
        assert home.spent(person, "comparison") == 0.0
    assert all(home.spent(person, "subject") == 0.0 for person in home.new_people)


def test_a_second_training_names_the_first_as_its_parent(home: Home) -> None:
    person = home.person(NEW[0])
    home.trainer().train_users(TENANT, [person])
    first = home.live(person)
    home.trainer().train_users(TENANT, [person])
    second = home.live(person)
    assert first != second
    assert home.store.version(TENANT, second).version.parent == first


def digest_of_everything(home: Home) -> dict[str, str]:
    """Every tensor that a training of adapters must leave alone, on disk and in memory."""
    found = {}
    for path in sorted(home.installation.models.rglob("*")):
        if path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in home.model.backbone.encoder.state_dict().items():
        found[f"encoder {name}"] = hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).hexdigest()
    for name, array in (home.model.head.tensors() | home.model.recipes.tensors()).items():
        found[f"head {name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return found


def test_nothing_is_trained_that_was_not_declared(home: Home) -> None:
    before = digest_of_everything(home)
    home.trainer().train_domain(TENANT, "chat")
    home.trainer().train_users(TENANT)
    assert digest_of_everything(home) == before
    for stored in home.store.versions(TENANT):
        declared = {spec.name for spec in stored.template.tensors}
        assert set(verify_version(stored.template, stored.version, home.installation.signer)) == declared == {HEAD_B}


# Refused


@pytest.mark.parametrize("what", ["users", "domain"])
def test_a_run_over_everybodys_budget_is_refused_before_any_data_is_read(home: Home, what: str) -> None:
    budgets = {"user_budget_epsilon": 3.0, "domain_budget_epsilon": 5.0}
    train(home.trainer(**budgets), what)
    live = {person: home.live(person) for person in home.new_people}
    unit = "comparison" if what == "users" else "subject"
    people = home.new_people if what == "users" else home.store.contributors(TENANT, "chat")
    spent = {person: home.spent(person, unit) for person in people}
    store = WatchedStore(home.store)
    with pytest.raises(BudgetExceededError) as refused:
        train(home.trainer(store=store, **budgets), what)
    assert not set(store.calls) & {*READS, "publish"}
    limit = budgets["user_budget_epsilon" if what == "users" else "domain_budget_epsilon"]
    assert f"over the budget of {limit:g}" in str(refused.value)
    assert unit in str(refused.value)
    assert refused.value.mend
    assert {person: home.spent(person, unit) for person in people} == spent
    assert {person: home.live(person) for person in home.new_people} == live
    assert sorted(run.state for run in home.store.runs(TENANT)) == ["refused", "settled"]


def test_who_is_over_budget_is_left_out_and_the_others_are_trained(home: Home) -> None:
    spenders = {home.person(NEW[0]), home.person(NEW[3])}
    for person in spenders:
        home.overspend(person)
    before = {person: home.spent(person) for person in spenders}
    report = home.trainer().train_users(TENANT)
    assert (report.published, report.refused) == (len(NEW) - 2, 2)
    for person in home.new_people:
        assert (home.live(person) is None) == (person in spenders)
    assert {person: home.spent(person) for person in spenders} == before


def test_a_domain_leaves_out_who_is_over_budget(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everybody but one over budget, that one person's comparisons are all that is learned from."""
    contributors = home.store.contributors(TENANT, "chat")
    for person in contributors[1:]:
        home.overspend(person, "subject")
    seen: list[int] = []

    def counted(data: SubjectComparisons, *_: Any, **__: Any) -> np.ndarray:
        seen.append(data.subjects)
        assert set(data.subject_C.tolist()) == {0}
        return np.zeros(data.differences_C_K.shape[1])

    monkeypatch.setattr(trainer_module, "train_domain", counted)
    report = home.trainer().train_domain(TENANT, "chat")
    assert (report.published, report.refused) == (1, len(contributors) - 1)
    (run, *_) = home.store.runs(TENANT)
    assert run.accounts == 1
    assert seen == [1]


def test_the_budget_that_a_refusal_names_would_do(home: Home) -> None:
    with pytest.raises(BudgetExceededError, match="over the budget of 8") as caught:
        home.trainer(user_epsilon=8.0).train_users(TENANT)
    setting, named = re.findall(r"set (\S+) to at least ([\d.]+)\.$", caught.value.mend)[0]
    assert setting == "IDIOLECT_USER_BUDGET_EPSILON"
    assert float(named) < 9.0
    assert home.trainer(user_epsilon=8.0, user_budget_epsilon=float(named)).train_users(TENANT).published == len(NEW)


def test_a_domain_that_can_not_be_trained_does_not_keep_the_others_from_it(home: Home) -> None:
    items = (Item("empty", "p", "text"), Item("zoo", "p", "text"))
    dataset = PreferenceDataset("more", "e" * 64, items, (Rating("someone", 1, 1.0),))
    import_dataset(home.installation, TENANT, dataset, ImportOptions(public=True, opt_in=False), lambda *_: None)
    command = ["train", "domain", "--epsilon", "8", "--home", str(home.installation.root), "--tenant", TENANT]
    for _ in range(2):
        result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
        assert "domain empty left out" in result.output
    assert "domain chat left out" in result.output  # and zoo: the budget is spent
    assert isinstance(result.exception, BudgetExceededError)
    assert [home.store.resolve(TENANT, None, name).domain is None for name in ("empty", "chat", "zoo")] == [
        True,
        False,
        False,
    ]


def test_nobody_to_train_is_said_and_charges_nobody(home: Home) -> None:
    for call in (
        lambda: home.trainer().train_users(TENANT, []),
        lambda: home.trainer().train_users(TENANT, ["0" * 32]),
        lambda: home.trainer().train_users(TENANT, [home.person(TRAINING[0])]),
        lambda: home.trainer().train_users("nobody"),
        lambda: home.trainer().train_domain(TENANT, "elsewhere"),
        lambda: home.trainer().train_domain("nobody", "chat"),
    ):
        with pytest.raises(NotFoundError) as refused:
            call()
        assert refused.value.mend
    assert not home.store.runs(TENANT)


def test_who_paused_or_opted_out_is_not_trained(home: Home) -> None:
    now = home.installation.clock.now()
    home.store.change_subject(TENANT, home.person(NEW[0]), ConsentChange(paused=True), now)
    home.store.change_subject(TENANT, home.person(NEW[1]), ConsentChange(opted_in=False), now)
    report = home.trainer().train_users(TENANT)
    assert report.published == len(NEW) - 2
    for number in NEW[:2]:
        assert home.live(home.person(number)) is None
        assert home.spent(home.person(number)) == 0.0


def test_a_trainer_on_a_model_that_is_no_longer_live_charges_nobody(home: Home) -> None:
    """What it published would never be served, and each try would cost people their budgets."""
    home.store.set_global("f" * 64, home.installation.clock.now(), reason="test", actor="test")
    for what in ("users", "domain"):
        with pytest.raises(ConflictError, match="no longer"):
            train(home.trainer(), what)
    assert not home.store.runs(TENANT)


# Killed


@pytest.mark.parametrize("where", ["personal_snapshot", "resolve", "publish"])
def test_a_failure_after_the_charge_leaves_the_charge_and_nothing_else(home: Home, where: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UnavailableError("the store went away.")

    with pytest.raises(UnavailableError):
        home.trainer(store=WatchedStore(home.store, {where: fail})).train_users(TENANT)
    (run,) = home.store.runs(TENANT)
    assert run.state == "reserved"
    assert run.settled_at is None
    assert all(home.spent(person) == run.event.rho for person in home.new_people)
    assert not home.store.versions(TENANT)
    assert all(home.live(person) is None for person in home.new_people)


def test_trying_again_pays_again_and_settles_only_what_was_published(home: Home) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UnavailableError("the store went away.")

    with pytest.raises(UnavailableError):
        home.trainer(store=WatchedStore(home.store, {"publish": fail})).train_users(TENANT)
    home.trainer().train_users(TENANT)
    newest, oldest = home.store.runs(TENANT)
    assert (newest.state, oldest.state) == ("settled", "reserved")
    assert home.spent(home.person(NEW[0])) == pytest.approx(newest.event.rho + oldest.event.rho)


@pytest.mark.parametrize("where", ["personal_snapshot", "publish", "settle"])
def test_a_process_that_is_killed_while_it_trains_has_paid(
    prepared_home: Path, tiny_bert: Path, tmp_path: Path, where: str
) -> None:
    """Before it reads, before it publishes, and before it settles: then what it published is live, and paid for."""
    shutil.copytree(prepared_home, tmp_path / "home")
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "from training_home import TENANT, WatchedStore, opened\n"
        "with opened(Path(sys.argv[1]), Path(sys.argv[2])) as home:\n"
        f"    store = WatchedStore(home.store, {{{where!r}: lambda *a, **k: os.kill(os.getpid(), 9)}})\n"
        "    home.trainer(store=store).train_users(TENANT)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "home"), str(tiny_bert)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    with opened(tmp_path / "home", tiny_bert) as home:
        (run,) = home.store.runs(TENANT)
        assert run.state == "reserved"
        assert all(home.spent(person) == run.event.rho for person in home.new_people)
        assert len(home.store.versions(TENANT)) == (len(NEW) if where == "settle" else 0)


# Sampled


def test_a_sampled_domain_claims_its_sample_and_charges_as_if_it_had_read_everybody(home: Home) -> None:
    report = home.trainer(domain_sample_rate=0.5).train_domain(TENANT, "chat")
    (run,), (one,) = home.store.runs(TENANT), home.store.versions(TENANT)
    verify_version(one.template, one.version, home.installation.signer)
    privacy = one.template.privacy
    assert (privacy.sample_rate, privacy.unsampled_steps) == (0.5, 1)
    assert privacy.event.charged == run.event
    assert privacy.epsilon == epsilon_of_run(privacy.event, privacy.delta) == report.epsilon
    assert 0.98 * 4.0 <= privacy.epsilon <= 4.0
    assert privacy.epsilon < epsilon_of_run(run.event, privacy.delta)
    assert run.accounts == len(TRAINING)
    assert all(home.spent(person, "subject") == run.event.rho for person in home.store.contributors(TENANT, "chat"))


def test_the_rate_that_is_claimed_is_the_rate_that_is_drawn(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def watched(data: SubjectComparisons, *_: Any, sample_rate: float) -> np.ndarray:
        asked.append(sample_rate)
        return np.zeros(data.differences_C_K.shape[1])

    monkeypatch.setattr(trainer_module, "train_domain", watched)
    for rate in (0.25, 1.0):
        home.trainer(domain_sample_rate=rate, domain_budget_epsilon=50.0).train_domain(TENANT, "chat")
    claimed = {one.template.privacy.sample_rate for one in home.store.versions(TENANT)}
    assert (asked, claimed) == ([0.25, 1.0], {0.25, None})


def test_a_sampled_run_over_the_budget_is_refused_by_what_it_charges(home: Home) -> None:
    """Its claim of 4 would fit into 6; as if everybody were read in each step it would not."""
    store = WatchedStore(home.store)
    with pytest.raises(BudgetExceededError, match="over the budget of 6"):
        home.trainer(store=store, domain_sample_rate=0.1, domain_budget_epsilon=6.0).train_domain(TENANT, "chat")
    assert not set(store.calls) & {*READS, "publish"}
    (run,) = home.store.runs(TENANT)
    assert (run.state, run.accounts) == ("refused", 0)


# Overtaken


LEAVING = [(how, moment) for how in ("feedback", "all", "opt out") for moment in ("personal_snapshot", "publish")]


@pytest.mark.parametrize(("how", "moment"), [*LEAVING, ("adapter", "publish")])
def test_someone_who_leaves_while_it_trains_is_left_out(home: Home, how: Any, moment: str) -> None:
    leaver, others = home.person(NEW[2]), [home.person(number) for number in NEW if number != NEW[2]]

    def leave(*_: Any, **__: Any) -> None:
        now = home.installation.clock.now()
        if how == "opt out":
            home.store.change_subject(TENANT, leaver, ConsentChange(opted_in=False), now)
        else:
            home.store.apply_reset(TENANT, leaver, new_id(), plan_reset(how), now)

    report = home.trainer(store=WatchedStore(home.store, {moment: leave})).train_users(TENANT)
    assert report.published == len(others)
    assert report.fenced == (1 if moment == "publish" else 0)
    assert home.live(leaver) is None
    assert not home.store.versions(TENANT, subject=leaver)
    assert home.spent(leaver) > 0.0  # nothing refunds
    assert all(home.live(person) is not None for person in others)


def test_who_only_resets_the_adapter_before_the_snapshot_is_trained_under_the_new_generation(home: Home) -> None:
    """Their feedback stays, and what is learned from it now belongs to the time after the reset."""
    person = home.person(NEW[2])

    def reset(*_: Any, **__: Any) -> None:
        home.store.apply_reset(TENANT, person, new_id(), plan_reset("adapter"), home.installation.clock.now())

    home.trainer(store=WatchedStore(home.store, {"personal_snapshot": reset})).train_users(TENANT)
    (version,) = home.store.versions(TENANT, subject=person)
    assert version.version.generation == home.store.subject(TENANT, person).generation == 1


def test_a_reset_persons_scores_are_those_of_someone_who_never_was(home: Home) -> None:
    person, scorer = home.person(NEW[0]), home.scorer()
    never = home.scored(scorer, "0" * 32)
    home.trainer().train_domain(TENANT, "chat")
    home.trainer().train_users(TENANT)
    personal = home.scored(scorer, person)
    assert personal.personalization.applied
    assert personal.score_N != never.score_N
    home.store.apply_reset(TENANT, person, new_id(), plan_reset("all"), home.installation.clock.now())
    after = home.scored(scorer, person)
    assert not after.personalization.applied
    assert after.score_N == home.scored(scorer, "0" * 32).score_N == never.score_N


# Raced


def test_two_trainers_can_not_both_spend_the_same_rest_of_a_budget(home: Home) -> None:
    outcomes: list[object] = []
    start = threading.Barrier(2)

    def one() -> None:
        trainer = home.trainer(user_budget_epsilon=3.0)  # enough for one run at epsilon 2
        start.wait()
        try:
            outcomes.append(trainer.train_users(TENANT))
        except BudgetExceededError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["BudgetExceededError", "TrainingReport"]
    paid = [run for run in home.store.runs(TENANT) if run.accounts]
    assert len(paid) == 1
    assert all(home.spent(person) == paid[0].event.rho for person in home.new_people)


# And does it help?


def test_trained_adapters_rank_as_their_people_do(home: Home) -> None:
    """Also through everything between the comparisons and the score, noise included (epsilon 8)."""
    home.trainer(user_epsilon=8.0, user_budget_epsilon=20.0).train_users(TENANT)
    scorer, rng = home.scorer(), np.random.default_rng(3)
    judged = home.world.comparisons(NEW, 60, rng)
    pairs = tuple((digested(item.prompt), digested(item.text)) for item in home.world.items)
    base = np.array(scorer.score(ScoreRequest(TENANT, pairs)).score_N)
    right, without = [], []
    for number in NEW:
        mine = judged.where(judged.person_C == number)
        score = np.array(scorer.score(ScoreRequest(TENANT, pairs, subject=home.person(number))).score_N)
        right.append((score[mine.chosen_C] > score[mine.rejected_C]).mean())
        without.append((base[mine.chosen_C] > base[mine.rejected_C]).mean())
    assert np.mean(right) > np.mean(without)
