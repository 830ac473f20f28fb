"""A new global model takes everybody along: same people, same generation, same privacy; and a kill does no harm."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_home import NEW, TENANT, Home, Quiet, opened

from idiolect import staging
from idiolect.errors import CorruptArtifactError, InvalidInputError
from idiolect.ids import new_id
from idiolect.registry.weights import verify_version
from idiolect.resets.plan import plan_reset
from idiolect_adapters.preference import load_model, save_model
from idiolect_services import training_runs
from idiolect_services.passage import CarryReport
from idiolect_services.trainer import HEAD_B


def retrained(home: Home, monkeypatch: pytest.MonkeyPatch, *, carry: bool = True, seed: int = 1) -> list[CarryReport]:
    """Another global model, with another seed, goes live in `home`."""
    told: list[CarryReport] = []
    monkeypatch.setattr(training_runs, "GLOBAL_OPTIONS", replace(training_runs.GLOBAL_OPTIONS, seed=seed))
    before = home.model.digest
    home.model = training_runs.train_global_model(
        home.installation, TENANT, Quiet(), carry=carry, on_carried=told.append
    )
    assert home.model.digest != before
    assert home.store.live_global() == home.model.digest
    return told


def trained(home: Home) -> None:
    home.trainer(user_epsilon=8.0, user_budget_epsilon=50.0).train_users(TENANT)
    home.trainer().train_domain(TENANT, "chat")


def gain(home: Home) -> float:
    """How much more often the people's own taste decides right: with the personal part, less without."""
    scorer, world = home.scorer(), home.world
    right = {"auto": 0, "off": 0}
    for number in NEW:
        liking = world.liking(number)[:8]
        for mode in right:
            score = np.array(home.scored(scorer, home.person(number), mode=mode).score_N)
            asked = [(a, b) for a in range(4) for b in range(4) if liking[a] > liking[b]]
            right[mode] += sum(bool(score[a] > score[b]) for a, b in asked)
    return (right["auto"] - right["off"]) / (len(NEW) * 6)


def test_everybody_is_served_personally_on_the_new_model(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(home)
    sources = {person: home.live(person) for person in home.new_people}
    runs = home.store.runs(TENANT)
    (report,) = retrained(home, monkeypatch)
    assert (report.carried, report.passed_over, report.fenced) == (len(NEW) + 1, 0, 0)
    assert home.store.runs(TENANT) == runs, "carrying must not be charged"
    for person, source in sources.items():
        assert source is not None
        before, now = home.store.version(TENANT, source), home.store.version(TENANT, home.live(person) or "")
        assert now.version.parent == source
        assert (now.version.generation, now.version.subject) == (before.version.generation, person)
        assert (now.template.privacy, now.template.run) == (before.template.privacy, before.template.run)
        assert now.template.carried.release == before.version.release
        assert now.template.carried.global_digest == before.template.global_digest
        assert len(now.template.carried.noise) == home.model.user_rank
        assert now.template.basis_digest == home.model.user_basis_digest
        assert verify_version(now.template, now.version, home.installation.signer)[HEAD_B].any()
    said = home.scored(home.scorer(), home.new_people[0], domain="chat").personalization
    assert (said.applied, said.reason, said.global_digest) == (True, "applied", home.model.digest)
    assert said.domain is not None


def test_the_gain_of_the_personal_part_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(home)
    before = gain(home)
    retrained(home, monkeypatch)
    assert before > 0.1, "the planted taste was not learned at all"
    assert gain(home) >= 0.9 * before


def test_whoever_was_reset_is_not_carried(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(home)
    gone, reset_between = home.new_people[:2]
    now = home.installation.clock.now()
    home.store.apply_reset(TENANT, gone, new_id(), plan_reset("adapter"), now)
    real = training_runs.Carrier.make_live

    def reset_first(carrier: training_runs.Carrier, waiting: object) -> None:
        home.store.apply_reset(TENANT, reset_between, new_id(), plan_reset("adapter"), now)
        real(carrier, waiting)  # type: ignore[arg-type]

    monkeypatch.setattr(training_runs.Carrier, "make_live", reset_first)
    retrained(home, monkeypatch)
    assert home.live(gone) is home.live(reset_between) is None
    assert all(home.live(person) for person in home.new_people[2:])


def test_a_bad_version_is_passed_over_and_a_revoked_one_gives_way_to_the_one_before(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(home)
    first = home.live(home.new_people[0])
    report = home.trainer(user_epsilon=8.0, user_budget_epsilon=50.0).train_users(TENANT)
    home.store.revoke_release(TENANT, report.release, home.installation.clock.now(), reason="bad", actor="test")
    reports = retrained(home, monkeypatch)
    assert reports[0].carried == len(NEW) + 1
    assert home.store.version(TENANT, home.live(home.new_people[0])).version.parent == first


def test_adapters_that_stayed_behind_can_be_carried_later_and_only_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(home)
    assert retrained(home, monkeypatch, carry=False) == [CarryReport()]
    assert home.live(home.new_people[0]) is None
    assert training_runs.carry_adapters(home.installation, TENANT, Quiet()).carried == len(NEW) + 1
    live = [home.live(person) for person in home.new_people]
    assert None not in live
    assert training_runs.carry_adapters(home.installation, TENANT, Quiet()) == CarryReport()
    assert [home.live(person) for person in home.new_people] == live


def test_without_the_old_model_nothing_is_carried_and_the_new_one_still_goes_live(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(home)
    (home.installation.models / home.model.digest / "model.json").unlink()
    (report,) = retrained(home, monkeypatch)
    assert (report.carried, report.passed_over) == (0, len(NEW) + 1)


def test_anchors_must_be_public(home: Home) -> None:
    with pytest.raises(InvalidInputError, match="public"):
        training_runs.carry_adapters(home.installation, "other", Quiet())


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from training_home import TENANT, Quiet, opened
import idiolect_adapters.preference as preference
from idiolect_services import training_runs

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

point = sys.argv[3]
with opened(Path(sys.argv[1]), Path(sys.argv[2])) as home:
    training_runs.GLOBAL_OPTIONS = replace(training_runs.GLOBAL_OPTIONS, seed=1)
    if point == "files are written":
        preference._sync = die
    elif point == "adapters wait":
        type(home.store).set_global = die
    else:
        training_runs.Carrier.make_live = die
    training_runs.train_global_model(home.installation, TENANT, Quiet())
"""


@pytest.mark.parametrize("point", ["files are written", "adapters wait", "the model is live"])
def test_a_kill_leaves_nothing_half_done_and_the_same_again_goes_through(
    home: Home, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(staging, "YOUNG_SECONDS", 0.0)  # what was left a moment ago goes too
    trained(home)
    old, root = home.model.digest, home.installation.root
    served = home.scored(home.scorer(), home.new_people[0])
    arguments = [str(root), str(tiny_bert), point, *[p for p in sys.path if "tests" in p]]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with opened(root, tiny_bert) as after:
        for folder in after.installation.models.iterdir():
            if not folder.name.startswith("."):  # what a training under way has there
                load_model(after.installation.models, folder.name)  # raises unless every byte is right
        if point == "the model is live":
            assert after.store.live_global() != old
            assert training_runs.carry_adapters(after.installation, TENANT, Quiet()).carried == len(NEW) + 1
        else:
            assert after.store.live_global() == old
            assert after.scored(after.scorer(), after.new_people[0]) == served
            retrained(after, monkeypatch)
        assert all(after.live(person) for person in after.new_people)
        assert not list(after.installation.models.glob(".*"))


def test_an_intact_model_is_never_moved_while_it_may_be_live(home: Home) -> None:
    model, root = home.model, home.installation.models

    def again() -> str:
        return save_model(
            root, model.backbone, model.head, model.recipes, temperature=1.0, training={}, contrasts=model.contrasts
        ).digest

    digest = again()
    place = (root / digest).stat().st_ino
    assert again() == digest
    assert (root / digest).stat().st_ino == place
    (root / digest / "model.json").write_bytes(b"{}")
    with pytest.raises(CorruptArtifactError):
        load_model(root, digest)
    assert again() == digest
    assert load_model(root, digest).contrasts == model.contrasts


def test_the_command_shows_a_persons_directions_with_public_texts_as_data(home: Home, tiny_bert: Path) -> None:
    trained(home)
    home.trainer(user_epsilon=8.0, user_budget_epsilon=50.0).train_users(TENANT)
    name = f"person {NEW[0]}"
    command = [sys.executable, "-m", "idiolect_services", "user", "show", name, "--tenant", TENANT]
    shown = subprocess.run(
        [*command, "--home", str(home.installation.root)], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert sum(line.startswith("direction ") for line in lines) == home.model.user_rank
    texts = {item.text for item in home.world.items}
    high = [line.split("high: ", 1)[1] for line in lines if line.startswith("  high: ")]
    assert high
    assert all(text.strip("'") in texts for text in high)
