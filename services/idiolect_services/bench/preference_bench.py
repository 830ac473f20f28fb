"""The preference benchmark: the Polis protocol, or the same on the sample where there is no real data.

The shared models train on everyone but the new people and on all but the new items. For each new person: adapt to the
first n pairs, then predict both test parts. Accuracy is averaged over a person's pairs and then over people with at
least four pairs in the part; the interval is a bootstrap over people (and noise draws). All hyper-parameters come
from training people (training/tuning.py). The baselines (evaluation/baseline_rows.py) read the same features, people
and pairs. With real data, the UKPConvArg half (preference_crowd.py) follows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from idiolect.settings import Settings
from idiolect.signals.comparison import PreferenceDataset
from idiolect_adapters.backbone import find_backbone
from idiolect_adapters.evaluation.baseline_rows import BaselineScore, baseline_scores, baselines_of
from idiolect_adapters.evaluation.splits import new_people, shared_data
from idiolect_adapters.evaluation.stacks import KNOWN_ITEMS, StackEvaluation, StackId, StackScore, stacks_of
from idiolect_adapters.preference import project_features
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_services.bench.form import Measured
from idiolect_services.bench.preference_carrying import measure_carrying
from idiolect_services.bench.preference_carrying import metrics as carrying_metrics
from idiolect_services.bench.preference_crowd import KIND as CROWD
from idiolect_services.bench.preference_crowd import measure_crowd
from idiolect_services.bench.preference_crowd import metrics as crowd_metrics
from idiolect_services.bench.trained import trained_model
from idiolect_services.datasets import read_dataset, sample_folder
from idiolect_services.training_runs import Stages

PARTS = ("test_known", "test_new")
ACCURACY, ERROR, GAIN = "accuracy", "calibration error", "accuracy over the stack below"
LOUDEST = 1.0  # of USER_EPSILONS
END_TO_END = "end_to_end"


@dataclass(frozen=True, slots=True)
class Protocol:
    """A data set, how the metrics on it are named, and to how many pairs its people adapt."""

    kind: str
    folder: Path
    sizes: tuple[int, ...]
    baseline_sizes: tuple[int, ...]

    def metrics(self) -> list[str]:
        names = []
        for part in PARTS:
            for stack in stacks_of(part, self.sizes):
                name = f"{self.kind}_{part}_{stack.name}"
                names += [name] if stack.kind == "item_mean" else [name, f"{name}_ece"]
            names += [f"{self.kind}_{part}_{name}" for name in baselines_of(part, self.baseline_sizes, KNOWN_ITEMS)]
            names.append(self.few_metric(part))
        return [*names, *carrying_metrics(self.kind, max(self.sizes)), f"{self.kind}_{END_TO_END}"]

    def few_metric(self, part: str) -> str:
        """The gain where it is hardest to get: fewest comparisons, loudest noise."""
        return f"{self.kind}_{part}_{self.fewest.name}_gain"

    @property
    def fewest(self) -> StackId:
        return StackId("user", min(self.sizes), LOUDEST)


def polis(data_dir: Path) -> Protocol:
    return Protocol("polis", data_dir / "polis", (5, 10, 30, 50), (10, 50))


def sample() -> Protocol:
    """Its people have 30 adaptation pairs each."""
    return Protocol("sample", sample_folder(), (5, 10, 30), (10, 30))


def all_metrics() -> list[str]:
    return [*polis(Path()).metrics(), *sample().metrics(), *crowd_metrics()]


def measure(settings: Settings, stages: Stages) -> Iterator[Measured]:
    backbone = find_backbone(settings.backbone)
    protocol = sample() if settings.data_dir is None else polis(settings.data_dir)
    started = time.monotonic()
    dataset = read_dataset(protocol.kind, protocol.folder, stages.stage(f"reading {protocol.kind}"))
    reading = time.monotonic() - started
    yield from measure_dataset(
        dataset,
        protocol,
        backbone=backbone,
        models=settings.root / "bench" / "models",
        options=GlobalOptions(),
        noise=SecureNoise(),
        stages=stages,
        seconds=reading,
    )
    if settings.data_dir is not None and (settings.data_dir / CROWD).is_dir():
        yield from measure_crowd(settings.data_dir / CROWD, backbone, stages)


def measure_dataset(
    dataset: PreferenceDataset,
    protocol: Protocol,
    *,
    backbone: Path,
    models: Path,
    options: GlobalOptions,
    noise: NoiseSource,
    stages: Stages,
    seconds: float = 0.0,
) -> Iterator[Measured]:
    """`seconds` were spent on reading; the last figure adds the training of the global model (as it was measured when
    it was trained) and everything after it.
    """
    data, new = shared_data(dataset), new_people(dataset)
    trained = trained_model(models, backbone, data, dataset.digest, options, stages)
    started = time.monotonic()
    texts = [(item.prompt, item.text) for item in data.items]
    features_I_F = trained.model.features(texts, stages.stage("reading all texts again"))
    projected_I_P = project_features(features_I_F, trained.model.head)
    evaluation = StackEvaluation(trained.model, projected_I_P, data, new, noise)
    scores = list(evaluation.evaluate(protocol.sizes, stages.stage("stacks")))
    seconds += trained.seconds + time.monotonic() - started
    # Not what our own training made of the texts: the encoder's features and the counted ones.
    plain_I_F = features_I_F[:, : features_I_F.shape[1] - trained.model.kernel_outputs]
    baselines = list(baseline_scores(plain_I_F, data, new, protocol.baseline_sizes, KNOWN_ITEMS))
    for part in PARTS:
        ours = [score for score in scores if score.part == part]
        yield from _measured(protocol.kind, ours)
        yield from _measured_baselines(protocol.kind, ours[0], [score for score in baselines if score.part == part])
        (few,) = [score.gain for score in ours if score.stack == protocol.fewest and score.gain is not None]
        yield Measured(protocol.few_metric(part), GAIN, few.value, few.low, few.high)
    pooled_I_H = plain_I_F[:, : trained.model.backbone.hidden_size]
    yield from measure_carrying(
        protocol.kind,
        max(protocol.sizes),
        trained.model,
        pooled_I_H,
        data,
        new,
        dataset.digest,
        backbone=backbone,
        models=models,
        options=options,
        noise=noise,
        stages=stages,
    )
    yield Measured(f"{protocol.kind}_{END_TO_END}", "s", seconds)


def _measured(kind: str, scores: Sequence[StackScore]) -> Iterator[Measured]:
    """Of one part: accuracies beside that of its baseline, which comes first (the item mean where items have one, the
    global Bradley-Terry model elsewhere); then calibration errors.
    """
    for score in scores:
        accuracy, baseline = score.accuracy, scores[0]
        beside = (None, None) if score is baseline else (baseline.stack.name, baseline.accuracy.value)
        yield Measured(_name(kind, score), ACCURACY, accuracy.value, accuracy.low, accuracy.high, *beside)
    for score in scores:
        if score.calibration is not None:
            error = score.calibration
            yield Measured(f"{_name(kind, score)}_ece", ERROR, error.value, error.low, error.high)


def _measured_baselines(kind: str, peer: StackScore, scores: Sequence[BaselineScore]) -> Iterator[Measured]:
    """Beside what the stacks of the part are beside."""
    for score in scores:
        found = score.accuracy
        beside = (peer.stack.name, peer.accuracy.value)
        yield Measured(f"{kind}_{score.part}_{score.metric}", ACCURACY, found.value, found.low, found.high, *beside)


def _name(kind: str, score: StackScore) -> str:
    return f"{kind}_{score.part}_{score.stack.name}"
