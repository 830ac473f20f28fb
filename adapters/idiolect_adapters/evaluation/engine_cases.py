"""What `idiolect bench engine` runs: the batched runtime beside the bare model and PEFT, on the same weights and rows.

Each case checks first that the contenders agree, so that none is fast because it does something else. All run where the
backbone does. A GPU is asked for many runs before it is waited for, since one takes it milliseconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from idiolect.errors import IdiolectError
from idiolect.settings import PRECISIONS
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.evaluation.engine_peer import peft_model, run_peft
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LoraAdapter, LoraPair, linear_shapes, uniform_spec
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied, Stack
from idiolect_adapters.runtime.batched.residents import Handle
from idiolect_adapters.surface import NAMES

BARE, PEFT, SHIPPED = "bare model", "PEFT mixed batch", "transformers as shipped"
STACKED, ONE, HEADS, CORES, SORTED = "domain + user", "user alone", "head users", "core users", "by length"
QUERY_VALUE = ("query", "value", "q_proj", "v_proj")
RANK, ALPHA = 8, 16.0
SHIPPED_BATCH = 32
GPU_RUNS = 20  # in one measured run there
AGREE = 1e-3


@dataclass(frozen=True, slots=True)
class Sizes:
    """`batches`: (rows, tokens). `lengths`: of the texts in the case without adapters."""

    batches: tuple[tuple[int, int], ...] = ((64, 32), (256, 16))
    people: int = 100_000
    texts: int = 64
    lengths: tuple[int, int] = (32, 256)
    decoder_hidden: int = 256
    decoder_layers: int = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against a peer of the same case, by their names among the contenders."""

    metric: str
    ours: str
    peer: str


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    rows: int
    contenders: Mapping[str, Callable[[], object]]
    compared: Sequence[Comparison]


@dataclass(frozen=True, slots=True)
class Registration:
    """Seconds to get `adapters` into a model."""

    adapters: int
    ours: float
    peft: float


@dataclass(frozen=True, slots=True)
class Mixed:
    """One encoder or decoder three times: bare, with the runtime's hooks, and inside PEFT."""

    bare: nn.Module
    hooked: nn.Module
    runtime: BatchedRuntime
    domain: Handle
    users: Sequence[Handle]
    peft: Any
    registration: Registration


def load_mixed(make: Callable[[], nn.Module], users: int) -> Mixed:
    """`users` LoRAs on queries and values of all layers, and one for the domain. `make` builds equal models."""
    bare, hooked, wrapped = make(), make(), make()
    shapes = linear_shapes(bare)
    targets = [name for name in shapes if name.rpartition(".")[2] in QUERY_VALUE]
    adapters = [random_lora(bare, targets, seed) for seed in range(users)]
    runtime = BatchedRuntime(hooked)
    started = time.perf_counter()
    handles = [runtime.residents.add(adapter) for adapter in adapters]
    ours = time.perf_counter() - started
    started = time.perf_counter()
    peft = peft_model(wrapped, adapters)
    registration = Registration(users, ours, time.perf_counter() - started)
    domain = runtime.residents.add(random_lora(bare, targets, users), shared=True)
    return Mixed(bare, hooked, runtime, domain, handles, peft, registration)


def random_lora(model: nn.Module, targets: Sequence[str], seed: int) -> LoraAdapter:
    shapes, generator = linear_shapes(model), torch.Generator().manual_seed(seed)
    pairs = {}
    for name in targets:
        A_R_I = torch.randn(RANK, shapes[name].inputs, generator=generator) / shapes[name].inputs ** 0.5
        B_O_R = torch.randn(shapes[name].outputs, RANK, generator=generator) / 20
        pairs[name] = LoraPair(A_R_I, B_O_R)
    return LoraAdapter(uniform_spec(dict.fromkeys(targets, RANK), ALPHA), pairs)


def mixed_case(name: str, mixed: Mixed, rows: int, tokens: int) -> Case:
    """Every row a user of its own, in no order. Our time includes making the plan."""
    ids_N_T, mask_N_T = _batch(mixed.bare, rows, tokens)
    device = ids_N_T.device
    chosen = random.Random(0).sample(range(len(mixed.users)), rows)  # noqa: S311
    stacked = [[Applied(mixed.domain), Applied(mixed.users[user])] for user in chosen]
    alone = [stack[1:] for stack in stacked]

    def ours(stacks: Sequence[Stack]) -> torch.Tensor:
        plan = mixed.runtime.plan(stacks)
        order = torch.tensor(plan.order, device=device)
        with mixed.runtime.running(plan):
            hidden = _hidden(mixed.hooked, ids_N_T[order], mask_N_T[order])
        return hidden[torch.argsort(order)]

    def peft() -> torch.Tensor:
        return run_peft(mixed.peft, ids_N_T, mask_N_T, chosen)

    _check_agree(ours(alone), peft(), name)
    _check_agree(ours([[] for _ in range(rows)]), _hidden(mixed.bare, ids_N_T, mask_N_T), name)
    contenders = {
        BARE: lambda: _hidden(mixed.bare, ids_N_T, mask_N_T),
        STACKED: lambda: ours(stacked),
        ONE: lambda: ours(alone),
        PEFT: peft,
    }
    compared = (Comparison(f"{name}_stacked", STACKED, BARE), Comparison(f"{name}_one_adapter", ONE, PEFT))
    return _on(device, Case(name, rows, contenders, compared))


def people_case(load: Callable[[], Backbone], rows: int, tokens: int, people: int) -> Case:
    """Each batch has other people. Their numbers act on the reward head, or between a shared A and B on the last layer;
    the domain's LoRA is on the last two layers and the head."""
    bare, hooked = _reward_model(load()), _reward_model(load())
    runtime, generator = BatchedRuntime(hooked), torch.Generator().manual_seed(0)
    layers = [name for name in linear_shapes(hooked) if name.rpartition(".")[2] in QUERY_VALUE][-4:]
    domain = runtime.residents.add(random_lora(hooked, [*layers, "score"], 0), shared=True)
    last, shape = layers[-1], linear_shapes(hooked)[layers[-1]]
    heads = runtime.residents.basis_family("score", torch.randn(12, hooked.score.in_features, generator=generator))
    A_R_I = torch.randn(RANK, shape.inputs, generator=generator) / shape.inputs**0.5
    cores = runtime.residents.core_family(last, A_R_I, torch.randn(shape.outputs, RANK, generator=generator) / 20)
    head_users = runtime.residents.add_members(heads, torch.randn(people, 1, 12, generator=generator))
    core_users = runtime.residents.add_members(cores, torch.randn(people, RANK, RANK, generator=generator))
    ids_N_T, _ = _batch(hooked.encoder, rows, tokens)
    ids, surface_N_S = ids_N_T.tolist(), torch.rand(rows, len(NAMES), generator=generator)
    draw = random.Random(0)  # noqa: S311

    def ours(users: Sequence[Handle]) -> torch.Tensor:
        plan = runtime.plan([[Applied(domain), Applied(draw.choice(users))] for _ in range(rows)])
        with runtime.running(plan):
            scores: torch.Tensor = hooked([ids[row] for row in plan.order], surface_N_S[list(plan.order)])
        return scores

    @torch.inference_mode()
    def without() -> torch.Tensor:
        scores: torch.Tensor = bare(ids, surface_N_S)
        return scores

    contenders = {BARE: without, HEADS: lambda: ours(head_users), CORES: lambda: ours(core_users)}
    compared = (Comparison("people_head", HEADS, BARE), Comparison("people_core", CORES, BARE))
    return _on(hooked.backbone.device, Case("people", rows, contenders, compared))


def lengths_case(backbone: Backbone, texts: int, lengths: tuple[int, int]) -> Case:
    """No adapters: texts of mixed length in the order in which they came, as a user of transformers would pad them."""
    ids = _random_ids(backbone, texts, lengths)

    @torch.inference_mode()
    def shipped() -> torch.Tensor:
        starts = range(0, texts, SHIPPED_BATCH)
        return torch.cat([backbone.pooled(ids[start : start + SHIPPED_BATCH]) for start in starts])

    by_length = partial(_pooled_by_length, backbone, ids)
    _check_agree(shipped(), by_length(), "lengths")
    compared = (Comparison("lengths_bare", SORTED, SHIPPED),)
    return _on(backbone.device, Case("lengths", texts, {SHIPPED: shipped, SORTED: by_length}, compared))


def precisions_case(folder: Path, texts: int, lengths: tuple[int, int], device: str) -> Case:
    """The same texts through the same weights in other precisions. What that costs in accuracy shows in a model that
    was trained in one (`IDIOLECT_PRECISION`, then `idiolect eval`)."""
    offered = [precision for precision in PRECISIONS if device == "cpu" or precision != "int8"]
    loaded: dict[str, Backbone] = {precision: Backbone.load(folder, precision, device) for precision in offered}
    ids = _random_ids(loaded["float32"], texts, lengths)
    contenders = {name: partial(_pooled_by_length, backbone, ids) for name, backbone in loaded.items()}
    compared = tuple(Comparison(f"lengths_{name}", name, "float32") for name in offered if name != "float32")
    return _on(loaded["float32"].device, Case("precisions", texts, contenders, compared))


def _random_ids(backbone: Backbone, texts: int, lengths: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    draw = random.Random(0)  # noqa: S311
    vocabulary = backbone.tokenizer.vocab_size
    longest = min(lengths[1], backbone.max_tokens)
    return tuple(
        tuple(draw.randrange(vocabulary) for _ in range(draw.randint(min(lengths[0], longest), longest)))
        for _ in range(texts)
    )


@torch.inference_mode()
def _pooled_by_length(backbone: Backbone, ids: Sequence[tuple[int, ...]]) -> torch.Tensor:
    pooled_N_H = torch.empty(len(ids), backbone.hidden_size)
    for length, rows in backbone.padding.batches(ids):
        pooled_N_H[rows] = backbone.pooled([ids[row] for row in rows], length)
    return pooled_N_H


def tiny_llama(sizes: Sizes) -> LlamaModel:
    """Random weights, the same in every call."""
    hidden = sizes.decoder_hidden
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=sizes.decoder_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaModel(config).eval()


def engine_cases(
    folder: Path, sizes: Sizes, progress: Callable[[int, int], None], device: str = "cpu"
) -> Iterator[tuple[Case, Registration | None]]:
    """One at a time, so that only one set of models is in memory."""
    total = len(sizes.batches) + 4
    load = partial(Backbone.load, folder, device=device)
    mixed = load_mixed(lambda: load().encoder, max(rows for rows, _ in sizes.batches))
    registration: Registration | None = mixed.registration
    for done, (rows, tokens) in enumerate(sizes.batches):
        yield mixed_case(f"mixed_{rows}x{tokens}", mixed, rows, tokens), registration
        registration = None
        progress(done + 1, total)
    del mixed
    rows, tokens = sizes.batches[0]
    yield people_case(load, rows, tokens, sizes.people), None
    progress(total - 3, total)
    yield lengths_case(load(), sizes.texts, sizes.lengths), None
    progress(total - 2, total)
    yield precisions_case(folder, sizes.texts, sizes.lengths, device), None
    progress(total - 1, total)
    yield mixed_case("decoder", load_mixed(lambda: tiny_llama(sizes).to(device), rows), rows, tokens), None
    progress(total, total)


def _reward_model(backbone: Backbone) -> RewardModel:
    generator, features = torch.Generator().manual_seed(1), backbone.hidden_size + len(NAMES)
    return RewardModel(backbone, torch.zeros(features), torch.randn(features, generator=generator))


def _batch(model: nn.Module, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    config: Any = model.config
    ids_N_T = torch.randint(config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(2))
    ids_N_T = ids_N_T.to(next(model.parameters()).device)
    return ids_N_T, torch.ones_like(ids_N_T)


def _on(device: torch.device, case: Case) -> Case:
    """The case as it is measured on that device."""
    if device.type == "cpu":
        return case

    def often(run: Callable[[], object]) -> None:
        for _ in range(GPU_RUNS):
            run()
        torch.accelerator.synchronize(device)

    contenders = {name: partial(often, run) for name, run in case.contenders.items()}
    return replace(case, rows=case.rows * GPU_RUNS, contenders=contenders)


@torch.inference_mode()
def _hidden(model: nn.Module, ids_N_T: torch.Tensor, mask_N_T: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model(input_ids=ids_N_T, attention_mask=mask_N_T).last_hidden_state
    return hidden


def _check_agree(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    difference = float((ours.cpu() - theirs.cpu()).abs().max())
    if not difference < AGREE:
        raise IdiolectError(f"the contenders of case {name!r} differ by {difference:.3g}: they do not do the same.")
