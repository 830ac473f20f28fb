"""The batched products against one row at a time, on layers of any shape, in any dtype; and rows that have no adapter
beside rows that fill every slot."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idiolect.errors import CorruptArtifactError, IdiolectError, InvalidInputError, NotFoundError
from idiolect_adapters.lora.spec import LoraAdapter, LoraPair, LoraSpec, uniform_spec
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied
from idiolect_adapters.runtime.batched.reference import run_row
from idiolect_adapters.runtime.batched.residents import Handle
from lora_samples import random_adapter

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LOOSE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
NAMES = ("first", "second")


class TwoLayers(nn.Module):
    def __init__(self, sizes: tuple[int, int, int], bias: bool, dtype: torch.dtype, device: str = "cpu") -> None:
        super().__init__()
        inputs, middle, outputs = sizes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(sizes))
            self.first = nn.Linear(inputs, middle, bias=bias)
            self.second = nn.Linear(middle, outputs, bias=not bias)
        self.to(device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return y


class World:
    def __init__(self, model: TwoLayers) -> None:
        self.model = model
        self.runtime = BatchedRuntime(model)
        self.adapters: list[LoraAdapter] = []
        self.handles: list[Handle] = []

    def add(self, adapter: LoraAdapter, *, shared: bool = False) -> None:
        self.adapters.append(adapter)
        self.handles.append(self.runtime.residents.add(adapter, shared=shared))

    def run(self, x: torch.Tensor, rows: Sequence[Sequence[tuple[int, float]]]) -> torch.Tensor:
        plan = self.runtime.plan([[Applied(self.handles[n], strength) for n, strength in row] for row in rows])
        order = torch.tensor(plan.order, dtype=torch.long, device=x.device)
        with self.runtime.running(plan):
            y = self.model(x[order])
        return y[torch.argsort(order)]

    def slow(self, x: torch.Tensor, rows: Sequence[Sequence[tuple[int, float]]]) -> torch.Tensor:
        self.runtime.close()
        ys = []
        for at, row in enumerate(rows):
            stack = [(self.adapters[n], strength) for n, strength in row]
            ys.append(run_row(self.model, stack, lambda at=at: self.model(x[at : at + 1])))
        return torch.cat(ys)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


SIZES = st.tuples(st.integers(1, 33), st.integers(1, 33), st.integers(1, 17))
ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), max_size=4), min_size=1, max_size=12
)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    st.booleans(),
    st.sampled_from(list(LOOSE)),
    st.tuples(*[st.integers(1, 40)] * 4),
    st.integers(0, 9),
    ROWS,
)
def test_layers_of_any_shape_and_dtype_give_what_one_row_at_a_time_gives(
    device: str,
    sizes: tuple[int, int, int],
    bias: bool,
    dtype: torch.dtype,
    ranks: tuple[int, ...],
    tokens: int,
    rows: list[list[tuple[int, float]]],
) -> None:
    made = World(TwoLayers(sizes, bias, dtype, device))
    for number, rank in enumerate(ranks):
        layers = dict.fromkeys(NAMES[: 1 + number % 2], rank)
        made.add(random_adapter(made.model, layers, seed=number, alpha=float(rank), size=0.2), shared=number == 3)
    shape = (tokens, sizes[0]) if tokens else (sizes[0],)  # 0: one vector per row, as a head sees it
    x = drawn(len(rows), *shape, dtype=dtype, device=device)
    with torch.inference_mode():
        bare = made.model(x)
    fast = made.run(x, rows)
    slow = made.slow(x, rows)
    assert fast.dtype == dtype
    assert torch.allclose(fast, slow, rtol=LOOSE[dtype], atol=LOOSE[dtype])
    empty = [at for at, row in enumerate(rows) if not any(strength for _, strength in row)]
    if not empty or tokens * len(rows) < 16:
        return  # the bare model itself rounds by the number of rows below 16; the server pads to more
    order_free = made.run(x, [[] for _ in rows])
    assert torch.allclose(order_free, bare, rtol=LOOSE[dtype], atol=LOOSE[dtype])


def test_a_batch_without_rows_is_an_empty_answer() -> None:
    made = World(TwoLayers((3, 5, 2), True, torch.float32))
    made.add(random_adapter(made.model, {"first": 2}))
    assert made.run(torch.empty(0, 4, 3), []).shape == (0, 4, 2)


def test_a_row_without_an_adapter_reads_no_slot_though_all_are_full() -> None:
    """vLLM's CPU build looks such rows up at slot -1, which is the last one: they get a stranger's adapter."""
    made = World(TwoLayers((8, 8, 4), True, torch.float32))
    x = drawn(16, 20, 8)
    bare = made.run(x, [[]] * 16)
    for seed in range(8):
        made.add(random_adapter(made.model, dict.fromkeys(NAMES, 8), seed=seed, size=50.0))
    (family,) = {slot.family for handle in made.handles for slot in handle.slots}
    assert family.members == len(family._slab) == 8  # no slot is free, and the last one is taken
    for row in range(16):
        rows = [[(at % 8, 1.0)] if at != row else [] for at in range(16)]
        assert torch.equal(made.run(x, rows)[row], bare[row])


def test_ten_thousand_adds_and_removals_under_traffic_never_show_another_version() -> None:
    """Every answer is that of one version which was there while it ran, or a clear refusal; nothing is left over."""
    model = TwoLayers((4, 4, 1), True, torch.float64)
    runtime, people = BatchedRuntime(model), 12
    x = drawn(1, 16, 4, dtype=torch.float64).expand(people, -1, -1).contiguous()
    versions = [random_adapter(model, dict.fromkeys(NAMES, 1 + seed % 9), seed=seed) for seed in range(4 * people)]
    expected = [run_row(model, [(version, 1.0)], lambda: model(x[:1]))[0] for version in versions]
    live: list[tuple[int, Handle]] = [(4 * p, runtime.residents.add(versions[4 * p])) for p in range(people)]
    problems: list[str] = []
    stop = threading.Event()

    def swaps(seed: int) -> None:
        chance = random.Random(seed)
        mine = range(seed, people, 2)  # one writer for each person, as the registry has
        for _ in range(2_500):
            person = chance.choice(mine)
            old, handle = live[person]
            number = 4 * person + (old + 1) % 4
            live[person] = (number, runtime.residents.add(versions[number]))
            runtime.residents.remove(handle)

    def traffic(seed: int) -> int:
        chance, answered = random.Random(seed), 0
        while not stop.is_set() or not answered:
            chosen = [live[chance.randrange(people)] for _ in range(people)]
            try:
                plan = runtime.plan([[Applied(handle)] for _, handle in chosen])
            except NotFoundError:
                continue  # one was removed between the look and the plan: whoever asks resolves again
            with runtime.running(plan):
                found = model(x)
            for at, row in enumerate(plan.order):
                if not torch.allclose(found[at], expected[chosen[row][0]], rtol=1e-5, atol=1e-5):
                    problems.append(f"version {chosen[row][0]} gave something else")
            answered += 1
        return answered

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(traffic, 10 + seed) for seed in range(2)]
        writers = [pool.submit(swaps, seed) for seed in range(2)]
        try:
            for writer in writers:
                writer.result(300)
        finally:
            stop.set()
        assert all(reader.result(60) > 0 for reader in readers)
    assert problems == []
    runtime.residents.check_integrity()
    for _, handle in live:
        runtime.residents.remove(handle)
    runtime.residents.check_integrity()
    stats = runtime.residents.stats()
    assert (stats.families, stats.members, stats.bytes) == (0, 0, 0)


def test_memory_returns_to_its_level_after_many_adds_and_removals() -> None:
    model = TwoLayers((4, 4, 2), True, torch.float32)
    residents = BatchedRuntime(model).residents
    adapters = [random_adapter(model, dict.fromkeys(NAMES, rank)) for rank in (1, 8, 20)]

    def rounds(count: int) -> None:
        for _ in range(count):
            for handle in [residents.add(adapter, shared=shared) for adapter in adapters for shared in (False, True)]:
                residents.remove(handle)
        gc.collect()

    rounds(20)
    before = sys.getallocatedblocks()
    rounds(300)
    assert abs(sys.getallocatedblocks() - before) < 500
    stats = residents.stats()
    assert (stats.families, stats.members, stats.bytes) == (0, 0, 0)
    residents.check_integrity()


def test_a_shape_of_which_few_are_left_gives_its_memory_back_and_those_score_as_before() -> None:
    """Else a tenant with many shapes would hold the peak of each, whatever the cache is bounded to."""
    made = World(TwoLayers((4, 4, 2), True, torch.float32))
    for seed in range(100):
        made.add(random_adapter(made.model, dict.fromkeys(NAMES, 4), seed=seed))
    x, rows = drawn(3, 16, 4), [[(17, 1.0)], [(99, 0.5)], []]
    expected, peak = made.run(x, rows), made.runtime.residents.stats().bytes
    planned = made.runtime.plan([[Applied(made.handles[17])]])
    for seed in range(98, -1, -1):
        if seed != 17:
            made.runtime.residents.remove(made.handles[seed])
            made.runtime.residents.check_integrity()
    stats = made.runtime.residents.stats()
    assert (stats.members, stats.families) == (2, 1)
    assert stats.bytes <= peak / 16
    assert torch.equal(made.run(x, rows), expected)
    with made.runtime.running(planned):
        assert torch.allclose(made.model(x[:1]), expected[:1])
    with pytest.raises(NotFoundError):
        made.run(x, [[(3, 1.0)], [], []])


def test_a_slab_for_one_large_adapter_has_room_for_one() -> None:
    made = World(TwoLayers((700, 300, 40), True, torch.float32))
    made.add(random_adapter(made.model, dict.fromkeys(NAMES, 256)))
    family = made.handles[0].slots[0].family
    assert made.runtime.residents.stats().bytes == 4 * family.width > 1 << 20


@torch.inference_mode()
def test_books_of_residents_that_do_not_balance_are_noticed() -> None:
    made = World(TwoLayers((3, 4, 2), True, torch.float32))
    for seed in range(3):
        made.add(random_adapter(made.model, {"first": 2}, seed=seed))
    made.runtime.residents.remove(made.handles[1])
    made.runtime.residents.check_integrity()
    slot = made.handles[0].slots[0]
    slot.family._slab[2] = 1.0  # a row that nobody has
    with pytest.raises(IdiolectError, match="free rows are not empty"):
        made.runtime.residents.check_integrity()
    slot.family._slab[2] = 0.0
    slot.family._row_of[2] = 0  # as another one
    with pytest.raises(IdiolectError, match="rows don't balance"):
        made.runtime.residents.check_integrity()
    slot.family._row_of[2] = 1
    slot.family._slab[0] = float("nan")
    with pytest.raises(IdiolectError, match="damaged"):
        made.runtime.residents.check_integrity()
    slot.family._slab[0] = 0.0
    slot.family._free.append(1)  # a second time
    with pytest.raises(IdiolectError, match="don't balance"):
        made.runtime.residents.check_integrity()


def broken(name: str, **changes: torch.Tensor) -> LoraAdapter:
    good = {"A_R_I": torch.ones(2, 3), "B_O_R": torch.ones(4, 2)} | changes
    return LoraAdapter(uniform_spec({name: 2}, 2.0), {name: LoraPair(**good)})


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (broken("third"), "no linear layer 'third'"),
        (broken("first", A_R_I=torch.ones(2, 5)), "'first.lora_A.weight' has the shape [2, 5], expected is [2, 3]"),
        (broken("first", A_R_I=torch.ones(1, 3)), "'first.lora_A.weight' has the shape [1, 3], expected is [2, 3]"),
        (broken("first", B_O_R=torch.ones(4, 1)), "'first.lora_B.weight' has the shape [4, 1], expected is [4, 2]"),
        (broken("first", A_R_I=torch.full((2, 3), torch.nan)), "'first.lora_A.weight' holds values that are not"),
        (broken("first", B_O_R=torch.full((4, 2), torch.inf)), "'first.lora_B.weight' holds values that are not"),
        (
            LoraAdapter(LoraSpec({"first": 2}, {"first": 1e30}), broken("first", B_O_R=torch.full((4, 2), 1e20)).pairs),
            "'first.lora_B.weight' holds values that are not finite once scaled",
        ),
        (LoraAdapter(uniform_spec({"first": 2, "second": 2}, 2.0), broken("first").pairs), "'second.lora_A.weight'"),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_what_does_not_fit_is_refused_by_the_name_of_its_tensor_before_anything_is_touched(
    adapter: LoraAdapter, words: str, shared: bool
) -> None:
    made = World(TwoLayers((3, 4, 2), True, torch.float32))
    made.add(random_adapter(made.model, {"first": 2}))
    before, x = made.runtime.residents.stats(), drawn(16, 4, 3)
    answer = made.run(x, [[(0, 1.0)]] * 16)
    with pytest.raises((CorruptArtifactError, InvalidInputError)) as refused:
        made.runtime.residents.add(adapter, shared=shared)
    assert words in refused.value.message
    assert made.runtime.residents.stats() == before
    made.runtime.residents.check_integrity()
    assert torch.equal(made.run(x, [[(0, 1.0)]] * 16), answer)


def test_members_that_are_not_finite_are_refused_and_none_of_them_stays() -> None:
    made = World(TwoLayers((3, 4, 2), True, torch.float32))
    family = made.runtime.residents.basis_family("first", torch.ones(2, 3))
    values = torch.ones(5, 4, 2)
    values[3, 0, 0] = torch.nan
    with pytest.raises(CorruptArtifactError, match="'first' hold values that are not finite"):
        made.runtime.residents.add_members(family, values)
    assert family.members == 0


def test_a_whole_plan_runs_where_there_is_no_data_so_nothing_is_left_behind_on_the_cpu() -> None:
    """The meta device refuses, as a GPU would, what mixes devices."""
    model = TwoLayers((6, 8, 4), True, torch.float32).to("meta")
    runtime = BatchedRuntime(model)
    residents = runtime.residents
    source = TwoLayers((6, 8, 4), True, torch.float32)
    plain = [residents.add(random_adapter(source, dict.fromkeys(NAMES, 3), seed=seed)) for seed in range(3)]
    domain = residents.add(random_adapter(source, {"second": 2}), shared=True)
    whole = residents.add(random_adapter(source, {"first": 2}, saved=("second",)))
    (core,) = residents.add_members(
        residents.core_family("second", torch.ones(2, 8), torch.ones(4, 2)), torch.ones(1, 2, 2)
    )
    stacks = [[Applied(plain[0]), Applied(domain, 0.5)], [], [Applied(whole)], [Applied(core, 0.25)], [Applied(domain)]]
    plan = runtime.plan(stacks)
    with runtime.running(plan):
        y = model(torch.empty(len(stacks), 5, 6, device="meta"))
    assert y.shape == (len(stacks), 5, 4)
    assert y.device.type == "meta"
