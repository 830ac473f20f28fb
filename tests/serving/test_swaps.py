"""What becomes live is loaded, for those in memory, before they ask: by a log in a real Redis, which may lie."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from serving_world import World, signed_version, some_weights, template_for

from idiolect.ids import new_id
from idiolect.registry.pointers import Adapter
from idiolect.registry.swaps import MAX_NAMED, Swap, swap_in
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.plan import Candidate, Plan
from idiolect.rollouts.verdicts import Move
from idiolect.settings import Settings
from idiolect_adapters.runtime.bank import Owner
from idiolect_adapters.runtime.remembered import Remembered
from idiolect_services import stream_tail
from idiolect_services import swaps as swaps_module
from idiolect_services.bench.reset_fleet import RedisServer
from idiolect_services.swap_log import MAX_WAITING, STREAM, SwapLog, SwapTeller
from idiolect_services.swaps import SwapFollower
from idiolect_services.wiring import open_installation

LONG = 60.0


def eventually(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LONG
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)
    return done()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_tail, "BLOCK_SECONDS", 0.1)
    monkeypatch.setattr(swaps_module, "BREAK_SECONDS", 0.0)


@pytest.fixture
def heard(world: World) -> list[Swap]:
    swaps: list[Swap] = []
    world.store.on_swap = swaps.append
    return swaps


def owner_of(world: World, user: str) -> Owner:
    return Owner("acme", "user", world.pseudonym("acme", user))


def has(world: World, user: str, version: Any) -> bool:
    """Whether the adapter that is live for this person lies in memory, and is this one."""
    owner, live = world.named("user", user)
    return live is not None and live.id == version.id and world.bank.holds(owner, live)


def in_memory(world: World, *users: str) -> None:
    api = world.api(world.key())
    for user in users:
        world.opt_in(user)
        world.publish_user(user)
        assert api.rerank(user)["personalization"]["applied"]


def published(world: World, *users: str) -> str:
    """One release for all of them."""
    template, release = template_for("acme", "user", world.model, world.clock), new_id()
    versions = [
        signed_version(
            template,
            world.signer,
            some_weights(f"{user} in {release}", 8),
            subject=world.pseudonym("acme", user),
            release=release,
        )
        for user in users
    ]
    world.store.publish(release, template, versions, world.clock.now(), reason="test", actor="test")
    return release


def follower(world: World, url: str = "redis://localhost:1", **options: Any) -> SwapFollower:
    return SwapFollower(url, world.live, world.store, **options)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_every_write_that_changes_what_is_live_is_told_after_its_commit(world: World, heard: list[Swap]) -> None:
    world.opt_in("ann")
    now, why = world.clock.now(), {"reason": "test", "actor": "test"}
    first, second = world.publish_user("ann"), world.publish_user("ann", some_weights("other", 8))
    assert heard == [Swap("acme", one.release, (one.id,)) for one in (first, second)]
    heard.clear()
    adapter = Adapter("user", world.pseudonym("acme", "ann"))
    world.store.rollback("acme", adapter, now, **why)
    world.store.promote("acme", second.id, now, **why)
    world.store.quarantine("acme", second.id, "bad", now, actor="test")
    world.store.revoke_release("acme", first.release, now, **why)
    assert heard == [
        Swap("acme", versions=(first.id,)),
        Swap("acme", versions=(second.id,)),
        Swap("acme", versions=(second.id,)),
        Swap("acme", first.release),
    ]


def test_a_large_release_is_told_by_its_name_alone(world: World, heard: list[Swap]) -> None:
    users = [f"person-{number}" for number in range(MAX_NAMED + 1)]
    for user in users:
        world.opt_in(user)
    release = published(world, *users)
    world.store.promote_release("acme", release, world.clock.now(), reason="test", actor="test")
    assert heard[0] == Swap("acme", release)


def test_what_is_staged_or_refused_is_not_told(world: World, heard: list[Swap]) -> None:
    """Nor what is fenced."""
    world.opt_in("ann")
    template = template_for("acme", "user", world.model, world.clock)
    subject = world.pseudonym("acme", "ann")
    staged = signed_version(template, world.signer, some_weights("a", 8), subject=subject)
    world.store.publish(staged.release, template, [staged], world.clock.now(), reason="test", actor="test", staged=True)
    fenced = signed_version(template, world.signer, some_weights("b", 8), subject=subject, generation=3)
    world.store.publish(fenced.release, template, [fenced], world.clock.now(), reason="test", actor="test")
    assert heard == []


def test_steps_of_a_rollout_are_told(world: World, heard: list[Swap]) -> None:
    world.publish_domain("shop")
    template = template_for("acme", "domain", world.model, world.clock)
    staged = signed_version(template, world.signer, some_weights("d", 4), domain="shop")
    now, why = world.clock.now(), {"reason": "test", "actor": "test"}
    world.store.publish(staged.release, template, [staged], now, **why, staged=True)
    heard.clear()
    candidate, plan = Candidate("version", staged.id), Plan(steps=(0.5, 1.0))
    made = world.store.create_rollout("acme", candidate, plan, now, **why, start=True)
    moved = world.store.move_rollout(made, Move("running", 1, made.verdict, "well"), now, actor="test")
    world.store.steer_rollout("acme", moved.id, "abort", now, **why)
    assert heard == [Swap("acme", versions=(staged.id,))] * 3
    setting = Candidate("setting", strength=0.5)
    world.store.create_rollout("acme", setting, Plan(steps=(0.5,)), now, **why, start=True)
    assert len(heard) == 3


def test_a_command_tells_at_once_and_publishes_without_redis_as_well(
    tmp_path: Path, world: World, redis: RedisServer, client: Any
) -> None:
    settings = Settings(home=tmp_path / "h", redis_url=redis.url)
    for redis_url in (redis.url, f"unix://{tmp_path}/nobody.sock"):
        with open_installation(settings.model_copy(update={"redis_url": redis_url})) as installation:
            if redis_url == redis.url:
                installation.store.create_tenant("acme", world.clock.now())
                installation.store.set_global(world.model.digest, world.clock.now(), reason="test", actor="test")
            template = template_for("acme", "domain", world.model, world.clock)
            version = signed_version(template, installation.signer, some_weights("d", 4), domain="shop")
            done = installation.store.publish(
                version.release, template, [version], world.clock.now(), reason="test", actor="test"
            )
            assert done.published == 1
        entries = [swap_in(fields) for _, fields in client.xrange(STREAM)]
        assert len(entries) == 1  # of the first
        assert (entries[0] == Swap("acme", version.release, (version.id,))) is (redis_url == redis.url)


def test_a_server_that_tells_does_not_wait_for_redis(redis: RedisServer, client: Any) -> None:
    teller = SwapTeller(redis.url)
    redis.signal(signal.SIGSTOP)
    try:
        for number in range(2 * MAX_WAITING):  # more than wait are dropped
            teller.note(Swap("acme", f"r{number}"))
    finally:
        redis.signal(signal.SIGCONT)
    teller.start()
    teller.stop()
    assert client.xlen(STREAM) <= MAX_WAITING


# --- what is followed -------------------------------------------------------------------------------------------------


@pytest.fixture
def following(world: World, redis: RedisServer, client: Any) -> Iterator[SwapFollower]:
    """Another process than the one that publishes, as far as they know."""
    one = follower(world, redis.url)
    one.start()
    assert eventually(lambda: one._tail._cursor is not None)
    told = SwapLog(redis.url)
    world.store.on_swap = told.tell
    yield one
    one.stop()
    told.close()


def test_a_version_that_becomes_live_is_in_memory_before_anybody_asks_and_the_old_one_is_not(
    world: World, following: SwapFollower, client: Any
) -> None:
    in_memory(world, "ann")
    _, before = world.named("user", "ann")
    version = world.publish_user("ann", some_weights("new", 8))
    assert eventually(lambda: has(world, "ann", version))
    assert eventually(lambda: not world.bank.holds(owner_of(world, "ann"), before))
    loads = world.bank.stats().loads
    assert world.api(world.key()).rerank("ann")["personalization"]["adapter"] == version.id
    assert world.bank.stats().loads == loads
    assert following.prefetched >= 1
    said = b"".join(value for _, fields in client.xrange(STREAM) for value in fields.values())
    assert world.pseudonym("acme", "ann").encode() not in said
    world.bank.check_integrity()


def test_the_operator_sees_how_many_were_followed(world: World, following: SwapFollower) -> None:
    token = "a" * 16
    settings = world.settings.model_copy(update={"metrics_token": SecretStr(token)})
    api = world.api(token, world.make_app(settings=settings, swaps=following.stats))
    in_memory(world, "ann")
    world.publish_user("ann", some_weights("new", 8))
    assert eventually(lambda: following.prefetched > 0)
    samples = dict(
        line.split(" ") for line in api.get("/metrics").text.splitlines() if line.startswith("idiolect_swap")
    )
    for name in ("idiolect_swaps_followed_total", "idiolect_swap_prefetches_total"):
        assert 1 <= float(samples[name]) <= 2  # it may come to the first when the second is live already
    assert "idiolect_swap" not in world.api(token, world.make_app(settings=settings)).get("/metrics").text


def test_a_domain_and_a_rollback_are_followed_too(world: World, following: SwapFollower) -> None:
    world.publish_domain("shop")
    in_memory(world, "ann")
    world.api(world.key()).rerank("ann", domain="shop")
    domain = world.publish_domain("shop", data_window="later")
    assert eventually(lambda: world.bank.holds(*world.named("domain", "shop")))
    assert world.named("domain", "shop")[1].id == domain.id  # type: ignore[union-attr]
    _, first = world.named("user", "ann")
    second = world.publish_user("ann", some_weights("new", 8))
    assert eventually(lambda: has(world, "ann", second))
    world.store.rollback(
        "acme", Adapter("user", world.pseudonym("acme", "ann")), world.clock.now(), reason="test", actor="test"
    )
    assert eventually(lambda: has(world, "ann", first))
    assert eventually(lambda: not world.bank.holds(*_named(world, "ann", second)))


def _named(world: World, user: str, version: Any) -> tuple[Owner, Any]:
    return owner_of(world, user), version


@pytest.mark.parametrize("trouble", ["flushed", "killed", "stopped"])
def test_after_trouble_with_redis_the_next_swap_is_followed(
    world: World, redis: RedisServer, following: SwapFollower, trouble: str
) -> None:
    in_memory(world, "ann")
    if trouble == "flushed":
        redis.flush()
    elif trouble == "killed":
        redis.stop()
    else:
        redis.signal(signal.SIGSTOP)
    lost = world.publish_user("ann", some_weights("lost", 8))
    redis.signal(signal.SIGCONT)
    if trouble == "killed":
        redis.start()
    assert world.api(world.key()).rerank("ann")["personalization"]["adapter"] == lost.id  # nothing depends on it

    def told() -> bool:
        version = world.publish_user("ann", some_weights(new_id(), 8))
        deadline = time.monotonic() + 1.0
        while not has(world, "ann", version) and time.monotonic() < deadline:
            time.sleep(0.005)
        return has(world, "ann", version)

    assert eventually(told)


def test_lies_cost_little_and_stop_nothing(world: World, following: SwapFollower, client: Any) -> None:
    in_memory(world, "ann")
    asked: list[str] = []
    version_of = world.store.version
    world.store.version = lambda tenant, version: asked.append(tenant) or version_of(tenant, version)
    for fields in (
        {"x": "y"},
        {"tenant": "", "release": "", "versions": ""},
        {"tenant": "nobody", "release": "r", "versions": "v"},
        {"tenant": "acme", "release": "no such", "versions": "no such,nor this"},
        {"tenant": "acme", "release": "r", "versions": ",".join(["v"] * 10_000)},
        {"tenant": b"\xff\xfe", "release": "r", "versions": ""},
        {"tenant": "acme'; DROP TABLE versions", "release": "r" * 5000, "versions": ""},
    ):
        client.xadd(STREAM, fields)
    assert eventually(lambda: "acme" in asked)
    assert "nobody" not in asked  # nobody of theirs is in memory
    client.delete(STREAM)
    client.set(STREAM, "x")
    client.delete(STREAM)
    version = world.publish_user("ann", some_weights("new", 8))
    assert eventually(lambda: has(world, "ann", version))


def test_of_a_large_release_those_in_memory_are_looked_up_and_seldom(world: World) -> None:
    users, uptime, asked = [f"person-{number}" for number in range(70)], [100.0], list[int]()
    in_memory(world, *users[:40])
    for user in users[40:]:
        world.opt_in(user)
    one = follower(world, monotonic=lambda: uptime[0])
    resolve_each = world.store.resolve_each
    world.store.resolve_each = lambda some: asked.append(len(some)) or resolve_each(some)
    for _ in range(5):
        one.follow(Swap("acme", published(world, *users)))
    one.sweep()
    assert asked == [swaps_module.AT_ONCE, 40 - swaps_module.AT_ONCE]
    one.follow(Swap("acme", published(world, *users)))
    uptime[0] += swaps_module.SWEEP_SECONDS / 2
    one.sweep()
    assert len(asked) == 2
    uptime[0] += swaps_module.SWEEP_SECONDS / 2
    one.sweep()
    assert len(asked) == 4
    assert eventually(lambda: all(world.bank.holds(*world.named("user", user)) for user in users[:40]))
    assert not any(world.bank.holds(*world.named("user", user)) for user in users[40:])


def test_whoever_was_reset_is_neither_remembered_nor_loaded(world: World) -> None:
    in_memory(world, "ann", "bob")
    ann, bob = (owner_of(world, user) for user in ("ann", "bob"))
    assert {owner for owner, _ in world.bank.used_last("acme")} == {ann, bob}
    world.store.apply_reset("acme", ann.name, "r1", plan_reset("all"), world.clock.now())
    world.scorer.forget("acme", ann.name)
    assert [owner for owner, _ in world.bank.used_last("acme")] == [bob]
    one, loads = follower(world), world.bank.stats().loads
    one.follow(Swap("acme", "any"))
    one.sweep()
    assert (one.prefetched, world.bank.stats().loads) == (0, loads)


def test_a_store_that_is_gone_ends_no_thread(world: World, following: SwapFollower, monkeypatch: Any) -> None:
    in_memory(world, "ann")
    with monkeypatch.context() as patch:
        failed: list[str] = []

        def gone(*_: object) -> None:
            failed.append("once")
            raise RuntimeError("a bug")

        patch.setattr(world.store, "version", gone)
        following.tell(Swap("acme", versions=("v",)))
        assert eventually(lambda: bool(failed))
    version = world.publish_user("ann", some_weights("new", 8))
    assert eventually(lambda: has(world, "ann", version))


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [Swap("t"), Swap("t", "r"), Swap("t", "", ("a", "b")), Swap("t", "r", ("v",) * 64)])
def test_a_swap_is_read_as_it_was_written(swap: Swap) -> None:
    assert swap_in({name.encode(): value.encode() for name, value in swap.fields().items()}) == swap


@pytest.mark.parametrize("versions", [",", "a,", "a,,b", "\n", "v" * 201, ",".join("v" * 66)])
def test_nonsense_is_no_swap(versions: str) -> None:
    assert swap_in({b"tenant": b"t", b"release": b"r", b"versions": versions.encode()}) is None


def test_as_many_are_remembered_as_was_said_those_used_last(world: World) -> None:
    in_memory(world, "ann", "bob")
    used = dict(world.bank.used_last("acme"))
    ann, bob = (owner_of(world, user) for user in ("ann", "bob"))
    remembered, eve = Remembered(2), Owner("other", "user", "eve")
    for owner in (ann, bob, ann, eve):
        remembered.note(owner, used.get(owner, used[ann]))
    assert (remembered.of("acme"), remembered.knows("other"), len(remembered)) == ([(ann, used[ann])], True, 2)
    remembered.forget(eve)
    remembered.forget(bob)
    assert (remembered.knows("other"), remembered.get(ann)) == (False, used[ann])
    nobody = Remembered(0)
    nobody.note(ann, used[ann])
    assert (len(nobody), nobody.of("acme")) == (0, [])
