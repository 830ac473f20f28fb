"""What is counted, and what a scrape shows.

No label names a tenant, a person, an adapter or a domain: there is no bound on how many there are, and the operator
need not know who did what. Routes are named by their pattern, never by the path that was called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from idiolect.stores.redis.resolutions import MemoryStats
from idiolect_adapters.runtime.bank import BankStats
from idiolect_adapters.runtime.features import FeatureStats
from idiolect_services.gateway.batching import BatchStats
from idiolect_services.gateway.exposition import Buckets, Family, Histogram, Labels
from idiolect_services.scorer import Reason, Unrecorded

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))


class Metrics:
    """Only for the event loop's thread."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, Buckets] = {}
        self._outcomes: Counter[Reason] = Counter()
        self._unrecorded: Counter[Unrecorded] = Counter()

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """`status` 0: the client went away, or the connection broke."""
        self._requests[route, method if method in METHODS else "other", status] += 1
        buckets = self._seconds.get(route)
        if buckets is None:
            buckets = self._seconds[route] = Buckets(SECONDS)
        buckets.add(seconds)

    def personalized(self, reason: Reason) -> None:
        self._outcomes[reason] += 1

    def unrecorded(self, why: Unrecorded | None) -> None:
        """`why` None: there was nothing to record."""
        if why is not None:
            self._unrecorded[why] += 1

    def families(self) -> list[Family | Histogram]:
        requests: dict[Labels, float] = {
            (("route", route), ("method", method), ("status", str(status or "none"))): float(count)
            for (route, method, status), count in self._requests.items()
        }
        seconds: dict[Labels, Buckets] = {(("route", route),): buckets for route, buckets in self._seconds.items()}
        outcomes: dict[Labels, float] = {
            (("reason", str(reason)),): float(count) for reason, count in self._outcomes.items()
        }
        lost: dict[Labels, float] = {(("reason", str(why)),): float(count) for why, count in self._unrecorded.items()}
        return [
            Family("idiolect_requests_total", "counter", "Answers by route and status.", requests),
            Histogram("idiolect_request_seconds", "Time until an answer was written.", seconds),
            Family("idiolect_rankings_total", "counter", "Rankings by what was said of personalization.", outcomes),
            Family("idiolect_unrecorded_total", "counter", "Rankings that left without an id, and why.", lost),
        ]


@dataclass(frozen=True, slots=True)
class SwapStats:
    """Counts since the start: `followed` of tenants that somebody in memory belongs to, `prefetched` adapters."""

    followed: int
    prefetched: int


@dataclass(frozen=True, slots=True)
class ServerState:
    """Read at one scrape. `active_rollouts` is None if the store can't be reached."""

    bank: BankStats
    features: FeatureStats
    batches: BatchStats
    model: str
    model_switches: int
    model_outdated: bool
    models_draining: int
    candidate_missing: bool
    quarantined: int
    active_rollouts: int | None
    memory: MemoryStats | None = None
    swaps: SwapStats | None = None


def state_families(state: ServerState) -> list[Family | Histogram]:
    return [
        *_model_families(state),
        *_bank_families(state.bank),
        *_text_families(state.features, state.batches),
        *([] if state.memory is None else [_memory_family(state.memory)]),
        *([] if state.swaps is None else _swap_families(state.swaps)),
    ]


def _swap_families(swaps: SwapStats) -> list[Family]:
    return [
        _counter("swaps_followed_total", "Changes of what is live that were looked into.", swaps.followed),
        _counter("swap_prefetches_total", "Adapters that were loaded ahead after one.", swaps.prefetched),
    ]


def _memory_family(memory: MemoryStats) -> Family:
    about = "What was remembered of earlier requests: confirmed by the store, not so any more, or nothing."
    outcomes = {"confirmed": memory.confirmed, "outdated": memory.outdated, "missed": memory.missed}
    return _counter("remembered_total", about, _by("outcome", outcomes))


def _model_families(state: ServerState) -> list[Family]:
    rollouts = state.active_rollouts
    return [
        _gauge("store_up", "1 if the store could be asked at this scrape.", rollouts is not None),
        _gauge("model_info", "The global model that serves.", {(("digest", state.model),): 1.0}),
        _gauge("model_outdated", "1 if the live global model could not be loaded.", state.model_outdated),
        _gauge("candidate_missing", "1 if the candidate of a rollout could not be loaded.", state.candidate_missing),
        _gauge("models_draining", "Global models that only finish their last requests.", state.models_draining),
        _counter("model_switches_total", "Global models that took over while serving.", state.model_switches),
        _counter("quarantined_total", "Versions that this process found to be bad.", state.quarantined),
        *([] if rollouts is None else [_gauge("rollouts_active", "Rollouts under way.", rollouts)]),
    ]


def _bank_families(bank: BankStats) -> list[Family]:
    tiers = {
        "slab": (bank.entries, bank.bytes, bank.hits, bank.evictions),
        "host": (bank.host_entries, bank.host_bytes, bank.host_hits, bank.host_evictions),
        "lora": (bank.loras, bank.lora_bytes, bank.lora_hits, bank.lora_evictions),
    }
    return [
        _gauge("bank_entries", "Adapters in memory by tier.", _by("tier", {t: v[0] for t, v in tiers.items()})),
        _gauge("bank_bytes", "Memory of adapters by tier.", _by("tier", {t: v[1] for t, v in tiers.items()})),
        _counter("bank_hits_total", "Adapters found by tier.", _by("tier", {t: v[2] for t, v in tiers.items()})),
        _counter(
            "bank_evictions_total", "Adapters that went for others.", _by("tier", {t: v[3] for t, v in tiers.items()})
        ),
        _gauge("bank_capacity", "Most adapters of people in the slab.", bank.max_adapters),
        _gauge("bank_pinned", "Adapters that are never evicted.", bank.pinned),
        _gauge("bank_draining", "Unloaded adapters that somebody still reads.", bank.draining),
        _gauge("bank_prefetches_waiting", "Loads ahead of need that wait.", bank.prefetches_waiting),
        _gauge("bank_loading", "Adapters that are being read from the registry, or wait for it.", bank.loading),
        _gauge("lora_residents", "LoRAs in the batched runtime, in any tier or still in use.", bank.resident_loras),
        _gauge("lora_resident_shapes", "Different shapes among them; each has a slab.", bank.resident_shapes),
        _gauge("lora_resident_bytes", "Memory of these slabs.", bank.resident_bytes),
        _counter("bank_loads_total", "Adapters read from the registry and verified.", bank.loads),
        _counter("bank_refused_total", "Adapters that were not there or did not verify.", bank.refused),
        _counter("bank_turned_away_total", "Adapters that got no place in the slab.", bank.turned_away),
        _counter("bank_prefetches_dropped_total", "Loads ahead of need beyond the bound.", bank.prefetches_dropped),
    ]


def _text_families(features: FeatureStats, batches: BatchStats) -> list[Family]:
    refused = {"share": batches.refused_share, "full": batches.refused_full}
    return [
        _gauge("feature_cache_entries", "Texts whose features are cached.", features.entries),
        _gauge("feature_cache_capacity", "Most texts whose features are cached.", features.capacity),
        _counter("feature_cache_hits_total", "Texts found in the cache.", features.hits),
        _counter("feature_cache_misses_total", "Texts that had to be computed.", features.misses),
        _counter("feature_cache_evictions_total", "Texts that went for others.", features.evictions),
        _gauge("queue_texts", "Texts that wait for the model.", batches.waiting),
        _gauge("queue_tenants", "Tenants whose texts wait.", batches.tenants),
        _counter("forwards_total", "Forwards of the model.", batches.forwards),
        _counter("forward_texts_total", "Texts that forwards computed.", batches.computed),
        _counter("shared_texts_total", "Texts that joined one which was under way.", batches.shared),
        _counter("queue_expired_total", "Requests that the model had no time for.", batches.expired),
        _counter("queue_left_total", "Requests whose client went away while they waited.", batches.left),
        _counter("queue_refused_total", "Requests that found no place in the queue.", _by("bound", refused)),
    ]


Value = float | Mapping[Labels, float]


def _by(label: str, values: Mapping[str, float]) -> dict[Labels, float]:
    return {((label, name),): value for name, value in values.items()}


def _gauge(name: str, about: str, value: Value) -> Family:
    return Family(f"idiolect_{name}", "gauge", about, _samples(value))


def _counter(name: str, about: str, value: Value) -> Family:
    return Family(f"idiolect_{name}", "counter", about, _samples(value))


def _samples(value: Value) -> Mapping[Labels, float]:
    return value if isinstance(value, Mapping) else {(): float(value)}
