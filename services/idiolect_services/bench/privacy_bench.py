"""The privacy benchmark: what privacy costs, what an ordinary LoRA pays for it, and what an attack can show.

  - accuracy against epsilon, on the people and by the protocol of the preference benchmark;
  - user adapters against a LoRA per person that Opacus trains: the same people, pairs, stack below, epsilon and unit;
  - the audit's lower bound on epsilon against the claim, for both mechanisms;
  - user training with secure noise against the same with numpy's.

The global model is the one that the preference benchmark trains, and is trained only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.settings import Settings
from idiolect.signals.comparison import PreferenceDataset
from idiolect.signals.data import SharedData
from idiolect_adapters.audit.domain_canaries import shipped_domain
from idiolect_adapters.audit.run import AuditReport, audit_mechanism
from idiolect_adapters.audit.user_canaries import shipped_user
from idiolect_adapters.backbone import find_backbone
from idiolect_adapters.evaluation.against_lora import Stack, choose_lora, compare, held_out_people, some_people
from idiolect_adapters.evaluation.peer_lora import LoraPeer
from idiolect_adapters.evaluation.splits import NewPeople, new_people, shared_data
from idiolect_adapters.evaluation.stacks import DOMAIN_EPSILON, Epsilon, StackEvaluation, StackId, margins
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_adapters.training.user import pad_comparisons, train_users
from idiolect_services.bench import noise_cost
from idiolect_services.bench.form import Measured
from idiolect_services.bench.noise_cost import measure_noise
from idiolect_services.bench.preference_bench import ACCURACY, PARTS, Protocol, polis, sample
from idiolect_services.bench.privacy_plots import draw_audit, draw_lines
from idiolect_services.bench.trained import trained_model
from idiolect_services.datasets import read_dataset
from idiolect_services.training_runs import Stages

EPSILONS: tuple[Epsilon, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, None)
LORA_EPSILONS: tuple[Epsilon, ...] = (1.0, 8.0, None)
AUDITED = tuple(epsilon for epsilon in EPSILONS if epsilon is not None)
SIZES = (10, 30, 50)
MECHANISMS = ("user", "domain")
SIDES = ("lora_people", "lora", "over_lora")
REFUTED = "claims_refuted"
BELOW = StackId("domain", 0, DOMAIN_EPSILON)


@dataclass(frozen=True, slots=True)
class Effort:
    """`trials` None: as many as the audit takes by itself."""

    lora_people: int = 54
    tuning_people: int = 5
    claims: tuple[float, ...] = AUDITED
    trials: int | None = None
    noise_people: int = 8192
    noise_rounds: int = noise_cost.ROUNDS


@dataclass(frozen=True, slots=True)
class Names:
    """The metrics on one data set."""

    kind: str
    sizes: tuple[int, ...]

    @property
    def most(self) -> int:
        return max(self.sizes)

    def user(self, part: str, pairs: int, epsilon: Epsilon) -> str:
        return f"{self.kind}_{part}_{StackId('user', pairs, epsilon).name}"

    def below(self, part: str) -> str:
        return f"{self.kind}_{part}_{BELOW.name}"

    def same_people(self, part: str, side: str, epsilon: Epsilon) -> str:
        """`side`: lora_people (ours, on the people of the comparison), lora, or over_lora (the difference)."""
        noise = "no_noise" if epsilon is None else f"eps{epsilon:g}"
        return f"{self.kind}_{part}_{side}_n{self.most}_{noise}"

    def all(self) -> list[str]:
        names = []
        for part in PARTS:
            names.append(self.below(part))
            names += [self.user(part, size, epsilon) for size in self.sizes for epsilon in EPSILONS]
            names += [self.same_people(part, side, epsilon) for epsilon in LORA_EPSILONS for side in SIDES]
        return names


def names_of(protocol: Protocol) -> Names:
    return Names(protocol.kind, tuple(size for size in SIZES if size <= max(protocol.sizes)))


def audited(mechanism: str, epsilon: float) -> str:
    return f"audit_{mechanism}_eps{epsilon:g}"


def all_metrics() -> list[str]:
    audits = [audited(mechanism, epsilon) for mechanism in MECHANISMS for epsilon in AUDITED]
    sets = [name for protocol in (polis(Path()), sample()) for name in names_of(protocol).all()]
    return [*sets, *audits, REFUTED, *noise_cost.METRICS]


def measure(settings: Settings, plots: Path | None, stages: Stages) -> Iterable[Measured]:
    """Saves the figures in the folder `plots` if there is one."""
    protocol = sample() if settings.data_dir is None else polis(settings.data_dir)
    dataset = read_dataset(protocol.kind, protocol.folder, stages.stage(f"reading {protocol.kind}"))
    rows = list(
        measure_dataset(
            dataset,
            names_of(protocol),
            backbone=find_backbone(settings.backbone),
            models=settings.root / "bench" / "models",
            options=GlobalOptions(),
            # The sample's texts are long for the LoRA, and its people nobody: a few show that all of it works.
            effort=Effort(lora_people=8, tuning_people=2) if protocol.kind == "sample" else Effort(),
            stages=stages,
        )
    )
    if plots is not None:
        draw(plots, names_of(protocol), {row.metric: row for row in rows})
    return rows


def measure_dataset(
    dataset: PreferenceDataset,
    names: Names,
    *,
    backbone: Path,
    models: Path,
    options: GlobalOptions,
    effort: Effort,
    stages: Stages,
) -> Iterator[Measured]:
    data, new = shared_data(dataset), new_people(dataset)
    model = trained_model(models, backbone, data, dataset.digest, options, stages).model
    texts = [(item.prompt, item.text) for item in data.items]
    projected_I_P = model.project(texts, stages.stage("reading all texts again"))
    noise = SecureNoise()
    evaluation = StackEvaluation(model, projected_I_P, data, new, noise)
    yield from _curves(evaluation, names, stages)
    taste_I_K = projected_I_P[:, 1 : 1 + model.user_rank]
    stacks = {
        epsilon: Stack(projected_I_P[:, 0], evaluation.domain_scores(epsilon)[0], taste_I_K)
        for epsilon in (None, DOMAIN_EPSILON)
    }
    peer = LoraPeer(model.backbone, model.head, texts)
    yield from _same_people(model, peer, stacks, data, new, names, effort, noise, stages)
    yield from _audits(effort, stages)
    yield from _noise(model, stacks[None], new, names.most, effort)


def _curves(evaluation: StackEvaluation, names: Names, stages: Stages) -> Iterator[Measured]:
    below: dict[str, float] = {}
    for score in evaluation.evaluate(names.sizes, stages.stage("epsilons"), EPSILONS):
        accuracy, stack = score.accuracy, score.stack
        if stack == BELOW:
            below[score.part] = accuracy.value
            yield Measured(names.below(score.part), ACCURACY, accuracy.value, accuracy.low, accuracy.high)
        elif stack.kind == "user":
            metric = names.user(score.part, stack.pairs, stack.epsilon)
            beside = (BELOW.name, below[score.part])
            yield Measured(metric, ACCURACY, accuracy.value, accuracy.low, accuracy.high, *beside)


def _same_people(
    model: PreferenceModel,
    peer: LoraPeer,
    stacks: Mapping[Epsilon, Stack],
    data: SharedData,
    new: NewPeople,
    names: Names,
    effort: Effort,
    noise: NoiseSource,
    stages: Stages,
) -> Iterator[Measured]:
    pairs = names.most
    tuning = some_people(held_out_people(data, pairs), pairs, effort.tuning_people)
    people = some_people(new, pairs, effort.lora_people)
    recipes = choose_lora(peer, tuning, stacks[None], pairs, LORA_EPSILONS, stages.stage("learning rates of the LoRA"))
    for epsilon in LORA_EPSILONS:
        stack = stacks[None if epsilon is None else DOMAIN_EPSILON]
        progress = stages.stage(f"LoRA, epsilon {epsilon or 'none'}")
        for found in compare(
            peer, recipes[epsilon], model.recipes.user, people, stack, pairs, epsilon, noise, progress
        ):
            ours, lora, gain = found.ours, found.lora, found.gain
            user, its, more = (names.same_people(found.part, side, epsilon) for side in SIDES)
            yield Measured(user, ACCURACY, ours.value, ours.low, ours.high, "Opacus + PEFT", lora.value)
            yield Measured(its, ACCURACY, lora.value, lora.low, lora.high)
            yield Measured(more, "difference", gain.value, gain.low, gain.high)


def _audits(effort: Effort, stages: Stages) -> Iterator[Measured]:
    progress, done, refuted = stages.stage("audits"), 0, 0
    for mechanism in MECHANISMS:
        for epsilon in effort.claims:
            report = _audit(mechanism, epsilon, effort.trials)
            refuted += report.caught
            bound = max(report.lower_bound, report.lower_bound_gdp)
            yield Measured(audited(mechanism, epsilon), "epsilon", bound, None, None, "the claim", epsilon)
            done += 1
            progress(done, len(MECHANISMS) * len(effort.claims))
    yield Measured(REFUTED, "claims", float(refuted))


def _audit(mechanism: str, epsilon: float, trials: int | None) -> AuditReport:
    if mechanism == "user":
        return audit_mechanism(shipped_user(), epsilon, DEFAULT_DELTA, trials=trials)
    return audit_mechanism(shipped_domain(), epsilon, DEFAULT_DELTA, trials=trials)


def _noise(model: PreferenceModel, stack: Stack, new: NewPeople, pairs: int, effort: Effort) -> Iterable[Measured]:
    """The new people's own comparisons, again and again until there are as many people as asked for."""
    recipe = model.recipes.user.at(2.0)
    multiplier = noise_multiplier_for(2.0, DEFAULT_DELTA, recipe.steps)
    people = np.resize(np.arange(len(new.people)), effort.noise_people)
    margins_C = margins(stack.below_I, new.adaptation)
    padded = pad_comparisons(new.adaptation, people, stack.taste_I_K, margins_C, limit=pairs)
    return measure_noise(
        lambda noise: train_users(padded, recipe, multiplier, noise), effort.noise_people, effort.noise_rounds
    )


def draw(folder: Path, names: Names, rows: Mapping[str, Measured]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    curves = [
        (
            part,
            [(f"{size} comparisons", _points(EPSILONS, names, part, size)) for size in names.sizes],
            names.below(part),
        )
        for part in PARTS
    ]
    draw_lines(folder, "privacy-accuracy", rows, curves, title=f"{names.kind}: accuracy of user adapters")
    sides = ((SIDES[0], "user adapter"), (SIDES[1], "LoRA by Opacus and PEFT"))
    same = [
        (
            part,
            [
                (label, [(epsilon, names.same_people(part, side, epsilon)) for epsilon in LORA_EPSILONS])
                for side, label in sides
            ],
            None,
        )
        for part in PARTS
    ]
    draw_lines(
        folder, "privacy-lora", rows, same, title=f"{names.kind}: the same people, {names.most} comparisons each"
    )
    bounds = [(name, [(epsilon, audited(name, epsilon)) for epsilon in AUDITED]) for name in MECHANISMS]
    draw_audit(folder, "privacy-audit", rows, bounds, title="What attacks surely show of epsilon")


def _points(epsilons: Sequence[Epsilon], names: Names, part: str, size: int) -> list[tuple[Epsilon, str]]:
    return [(epsilon, names.user(part, size, epsilon)) for epsilon in epsilons]
