"""Which benchmarks there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idiolect.errors import InvalidInputError
from idiolect.settings import Settings
from idiolect_services.bench.form import Measured, Report, results_for
from idiolect_services.bench.machine import commit, machine, versions

if TYPE_CHECKING:  # importing torch takes seconds, and a list of names never needs it
    from idiolect_services.training_runs import Stages


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark may be told; each uses what concerns it.

    `epochs` None: as few as a first start trains, or with `full` all.
    """

    settings: Settings
    epochs: int | None = None
    full: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`metrics()` names all that `run` can yield; both import what they need only when called."""

    about: str
    run: Callable[[Options, Stages], Iterable[Measured]]
    metrics: Callable[[], Sequence[str]]


def _run_http(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.http_bench import Windows, measure

    return measure(options.settings.root, Windows(), stages)


def _http_metrics() -> Sequence[str]:
    from idiolect_services.bench.http_bench import METRICS

    return METRICS


def _run_preference(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.preference_bench import measure
    from idiolect_services.training_runs import FULL_EPOCHS, QUICK_EPOCHS

    return measure(options.settings, options.epochs or (FULL_EPOCHS if options.full else QUICK_EPOCHS), stages)


def _preference_metrics() -> Sequence[str]:
    from idiolect_services.bench.preference_bench import all_metrics

    return all_metrics()


BENCHMARKS: Mapping[str, Benchmark] = {
    "preference": Benchmark(
        "How often each stack orders a new person's pairs rightly, and how well its probabilities hold.",
        _run_preference,
        _preference_metrics,
    ),
    "http": Benchmark(
        "Warm reranks of 10 cached candidates over HTTP, against an empty route with the same bodies.",
        _run_http,
        _http_metrics,
    ),
}


def find_benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InvalidInputError(f"there is no benchmark {name[:80]!r}.", mend=f"Use one of: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def run_benchmark(name: str, options: Options, stages: Stages) -> Report:
    measured = list(find_benchmark(name).run(options, stages))
    return Report(name, commit(), machine(), versions(), results_for(name, measured))
