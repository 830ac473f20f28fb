"""A training whose result is for a rollout."""

from __future__ import annotations

from training_home import TENANT, Home


def test_a_staged_training_is_live_for_nobody(home: Home) -> None:
    first = home.trainer().train_users(TENANT)
    before = {person: home.live(person) for person in home.new_people}
    assert all(before.values())
    staged = home.trainer().train_users(TENANT, staged=True)
    assert staged.release != first.release
    assert {person: home.live(person) for person in home.new_people} == before
    assert len(home.store.versions(TENANT, release=staged.release)) == staged.published > 0
