"""Which benchmarks there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.settings import Settings
from idiolect_services.bench.form import Measured, Missing, Report, results_for
from idiolect_services.bench.machine import commit, machine, versions

if TYPE_CHECKING:  # importing torch takes seconds, and a list of names never needs it
    from idiolect_services.training_runs import Stages


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark may be told; each uses what concerns it."""

    settings: Settings
    plots: Path | None = None  # a folder for figures; None: no figures
    people: int | None = None  # how many; None: as many as the targets are about
    seconds: float | None = None  # of the long run; None: as long as the targets are about
    resets: int | None = None  # how many under faults; None: as many as the targets are about


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`metrics()` names all that `run` can yield; both import what they need only when called."""

    about: str
    run: Callable[[Options, Stages], Iterable[Measured | Missing]]
    metrics: Callable[[], Sequence[str]]
    draws: bool = False  # figures, if matplotlib is there


def _run_http(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.http_bench import Windows, measure

    return measure(options.settings.root, Windows(), stages)


def _http_metrics() -> Sequence[str]:
    from idiolect_services.bench.http_bench import METRICS

    return METRICS


def _run_preference(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.preference_bench import measure

    return measure(options.settings, stages)


def _preference_metrics() -> Sequence[str]:
    from idiolect_services.bench.preference_bench import all_metrics

    return all_metrics()


def _check_peer() -> None:
    """Opacus is nothing that Idiolect needs to run, so it comes with the tools of development only."""
    if find_spec("opacus") is None:
        raise ConfigurationError("this benchmark's peer, opacus, is not installed.", mend="Run: pip install opacus.")


def _run_training(options: Options, stages: Stages) -> Iterable[Measured]:
    _check_peer()
    from idiolect_adapters.backbone import find_backbone
    from idiolect_services.bench.training_bench import Work, measure

    return measure(find_backbone(options.settings.backbone), Work(), stages)


def _training_metrics() -> Sequence[str]:
    from idiolect_services.bench.training_bench import METRICS

    return METRICS


def _run_privacy(options: Options, stages: Stages) -> Iterable[Measured]:
    _check_peer()
    from idiolect_services.bench.privacy_bench import measure

    return measure(options.settings, options.plots, stages)


def _privacy_metrics() -> Sequence[str]:
    from idiolect_services.bench.privacy_bench import all_metrics

    return all_metrics()


def _run_swap(_options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.swap_bench import Work, measure

    return measure(Work(), stages)


def _swap_metrics() -> Sequence[str]:
    from idiolect_services.bench.swap_bench import METRICS

    return METRICS


def _run_engine(options: Options, stages: Stages) -> Iterable[Measured | Missing]:
    from idiolect_adapters.backbone import find_backbone
    from idiolect_adapters.evaluation.engine_cases import Sizes
    from idiolect_services.bench.engine_bench import ROUNDS, measure

    settings = options.settings
    return measure(find_backbone(settings.backbone), Sizes(), ROUNDS, stages, settings.device)


def _engine_metrics() -> Sequence[str]:
    from idiolect_services.bench.engine_bench import metrics

    return metrics()


def _run_registry(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.registry_bench import Work, measure

    return measure(Work() if options.people is None else Work(people=options.people), stages)


def _registry_metrics() -> Sequence[str]:
    from idiolect_services.bench.registry_bench import metrics

    return metrics()


def _run_reset(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_services.bench.reset_bench import Work, measure

    work = Work() if options.resets is None else Work.of(options.resets)
    return measure(options.settings.root, work, stages)


def _reset_metrics() -> Sequence[str]:
    from idiolect_services.bench.reset_bench import METRICS

    return METRICS


def _run_load(options: Options, stages: Stages) -> Iterable[Measured]:
    from idiolect_adapters.backbone import find_backbone
    from idiolect_services.bench.load_bench import Work, measure

    work = Work() if options.seconds is None else Work.of(options.seconds)
    return measure(options.settings.root, find_backbone(options.settings.backbone), work, stages)


def _load_metrics() -> Sequence[str]:
    from idiolect_services.bench.load_bench import METRICS

    return METRICS


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
    "engine": Benchmark(
        "Rows per second with an adapter stack for every row, against the bare model, PEFT, vLLM and infinity.",
        _run_engine,
        _engine_metrics,
    ),
    "swap": Benchmark(
        "New versions in a warm process, a million people, and loads beside warm traffic; against PEFT's add_adapter.",
        _run_swap,
        _swap_metrics,
    ),
    "registry": Benchmark(
        "A release of a million people on SQLite and Postgres, its resolves and revocation; against MLflow's registry.",
        _run_registry,
        _registry_metrics,
    ),
    "reset": Benchmark(
        "Resets on four servers over Postgres and Redis under load, while all of them are paused, killed and cut off.",
        _run_reset,
        _reset_metrics,
    ),
    "load": Benchmark(
        "A mix of calls for ten minutes at 70% of what one server can do, then at three times as much.",
        _run_load,
        _load_metrics,
    ),
    "training": Benchmark(
        "Private user adapters trained in a second, against Opacus with PEFT on the same comparisons.",
        _run_training,
        _training_metrics,
    ),
    "privacy": Benchmark(
        "Accuracy against epsilon, beside a LoRA that Opacus trains; what attacks show; what secure noise costs.",
        _run_privacy,
        _privacy_metrics,
        draws=True,
    ),
}


def find_benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InvalidInputError(f"there is no benchmark {name[:80]!r}.", mend=f"Use one of: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def run_benchmark(name: str, options: Options, stages: Stages) -> Report:
    found = list(find_benchmark(name).run(options, stages))
    measured = [one for one in found if isinstance(one, Measured)]
    missing = tuple(one for one in found if isinstance(one, Missing))
    return Report(name, commit(), machine(), versions(), results_for(name, measured), missing)
