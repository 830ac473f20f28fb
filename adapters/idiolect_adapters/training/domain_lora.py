"""Domain adapters that reach into the backbone: LoRA on the last layers and a head, private for one whole subject.

Only the B matrices and the head are trained. A is drawn once from a public seed and frozen (FFA-LoRA, Sun et al. 2024):
with A and B both noisy their product carries noise times noise, which grows without bound. B starts at zero, so an
untrained adapter changes nothing.

All comparisons of a subject form one contribution over *all* trained numbers together: the gradients of every B and of
the head are averaged over the subject's own comparisons and clipped as one row. Per-text gradients come from Opacus'
hooks, whose rows are added up per subject before anything is clipped. The backbone itself is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.privacy.events import check_sample_rate, is_positive
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import Head
from idiolect_adapters.surface import surface_features
from idiolect_adapters.training.clip_noise import (
    NoiseSource,
    add_gaussian_noise,
    check_clip_norm,
    check_noise_multiplier,
    clip_rows,
)
from idiolect_adapters.training.domain import COUNT_RELEASES, noisy_count
from idiolect_adapters.training.sampling import poisson_sample

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

QUERY_AND_VALUE = ("query", "value", "q_proj", "v_proj", "Wqkv")  # ModernBERT's are one matrix, with the keys
HEAD = "head"
MAX_STEPS = 200


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """Public constants. `clip_norm` bounds one subject's gradient of everything that is trained."""

    clip_norm: float
    learning_rate: float
    steps: int
    rank: int = 4
    layers: int = 1
    seed: int = 0  # of A: public, and no noise comes from it
    comparisons_at_once: int = 32  # bounds memory

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)
        if not is_positive(self.learning_rate):
            raise InvalidInputError(f"learning rate {self.learning_rate!r} is not usable.", mend="Use one above 0.")
        for name in ("steps", "rank", "layers", "comparisons_at_once"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} {value!r} is not usable.", mend="Use a whole number from 1.")
        if self.steps > MAX_STEPS:
            raise InvalidInputError(f"{self.steps} steps are not allowed.", mend=f"Use at most {MAX_STEPS}.")

    @property
    def releases(self) -> int:
        """What the ledger is charged for: the count of subjects, which reads everybody, and every step."""
        return self.steps + COUNT_RELEASES


@dataclass(frozen=True, slots=True)
class SubjectTexts:
    """C comparisons of S subjects (`subject_C` in 0..S-1) among I (prompt, text) pairs."""

    subjects: int
    texts: Sequence[tuple[str, str]]
    subject_C: IntArray
    chosen_C: IntArray
    rejected_C: IntArray
    weights_C: FloatArray

    def shares(self) -> FloatArray:
        """Each comparison's part of its subject's mean."""
        size_S = np.maximum(np.bincount(self.subject_C, weights=self.weights_C, minlength=self.subjects), 1e-9)
        share_C: FloatArray = self.weights_C / size_S[self.subject_C]
        return share_C


class _LoraLinear(torch.nn.Module):
    """`base(x) + B A x`; only B is trained."""

    def __init__(self, base: torch.nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        shape = (rank, base.in_features)
        self.a_R_I = torch.nn.Buffer(torch.randn(shape, generator=generator) / base.in_features**0.5)
        self.b = torch.nn.Linear(rank, base.out_features, bias=False)
        torch.nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = x @ self.a_R_I.T
        if torch.is_grad_enabled() and not low.requires_grad:
            low.requires_grad_()  # Opacus' hooks want an input that has a gradient, used or not
        out: torch.Tensor = self.base(x) + self.b(low)
        return out


class LoraScorer(torch.nn.Module):
    """The score of texts under backbone, LoRA and head; its only parameters that train are the B matrices and the head.

    Build it with `attached`, which takes the LoRA off the backbone again.
    """

    def __init__(self, backbone: Backbone, head: Head, lora: dict[str, _LoraLinear]) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.head = torch.nn.Linear(len(head.domain_basis_M_F), 1, bias=False)
        torch.nn.init.zeros_(self.head.weight)
        self.mean_F = torch.nn.Buffer(torch.from_numpy(head.mean_F))
        self.reward_F = torch.nn.Buffer(torch.from_numpy(head.reward_F))
        self.basis_M_F = torch.nn.Buffer(torch.from_numpy(head.domain_basis_M_F))
        self._backbone, self._lora = backbone, lora

    def forward(self, ids: Sequence[Sequence[int]], surface_N_S: torch.Tensor) -> torch.Tensor:
        features_N_F = torch.cat([self._backbone.pooled(ids), surface_N_S], dim=1) - self.mean_F
        score_N: torch.Tensor = features_N_F @ self.reward_F + self.head(features_N_F @ self.basis_M_F.T)[:, 0]
        return score_N

    def trained(self) -> dict[str, torch.nn.Linear]:
        """By name, in the order of the rows of a contribution."""
        return {HEAD: self.head} | {name: module.b for name, module in self._lora.items()}

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """What a release would declare: every A and B, named as PEFT names them."""
        found = {"head.lora_B.weight": _numpy(self.head.weight)}
        for name, module in self._lora.items():
            found[f"{name}.lora_A.weight"] = _numpy(module.a_R_I)
            found[f"{name}.lora_B.weight"] = _numpy(module.b.weight)
        return found


@contextmanager
def attached(backbone: Backbone, head: Head, recipe: LoraRecipe) -> Iterator[LoraScorer]:
    """LoRA on query and value of the last `recipe.layers` layers. Afterwards the backbone is as it was, bit for bit.

    Not for two threads at once on one backbone. Raises ConfigurationError for a backbone whose layers are not known.
    """
    encoder = backbone.encoder
    flags = {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}
    training = encoder.training
    bases = _targets(encoder, recipe.layers)
    generator = torch.Generator().manual_seed(recipe.seed)
    lora = {name: _LoraLinear(base, recipe.rank, generator) for name, base in bases.items()}
    encoder.requires_grad_(False).eval()
    try:
        for name, module in lora.items():
            _put(encoder, name, module)
        yield LoraScorer(backbone, head, lora)
    finally:
        for name, base in bases.items():
            _put(encoder, name, base)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(flags[name])
        encoder.train(training)


def train_domain_lora(
    backbone: Backbone,
    head: Head,
    data: SubjectTexts,
    recipe: LoraRecipe,
    noise_multiplier: float,
    noise: NoiseSource,
    *,
    sample_rate: float = 1.0,
) -> dict[str, NDArray[np.float32]]:
    """The tensors of one adapter. Per step: sample subjects, clip each one's update, sum, add noise, divide.

    The ledger must hold a reservation for `recipe.releases` releases at `noise_multiplier`, unit subject, of which
    COUNT_RELEASES read everybody and the others a sample. The divisor is `sample_rate` times the *released* count: the
    same in every step, and public. `noise_multiplier` 0 is training without privacy, for benchmarks only.
    """
    check_noise_multiplier(noise_multiplier), check_sample_rate(sample_rate)  # before anything is read
    with attached(backbone, head, recipe) as scorer:
        tokens = backbone.tokenize(data.texts).ids
        surface_I_S = torch.from_numpy(surface_features([text for _, text in data.texts]))

        def gradients(batch_S: NDArray[np.bool_]) -> FloatArray:
            return subject_gradients(scorer, data, tokens, surface_I_S, batch_S, recipe.comparisons_at_once)

        def descend(step_D: FloatArray) -> None:
            _descend(scorer, step_D)

        noisy_subject_steps(gradients, descend, data.subjects, recipe, noise_multiplier, noise, sample_rate=sample_rate)
        return scorer.tensors()


def noisy_subject_steps(
    gradients: Callable[[NDArray[np.bool_]], FloatArray],
    descend: Callable[[FloatArray], None],
    subjects: int,
    recipe: LoraRecipe,
    noise_multiplier: float,
    noise: NoiseSource,
    *,
    sample_rate: float = 1.0,
) -> None:
    """The mechanism: all that `descend` [D] ever learns of people. `gradients(batch)` [subjects in it, D] holds one row
    of each, however long."""
    check_noise_multiplier(noise_multiplier), check_sample_rate(sample_rate)
    divisor = sample_rate * noisy_count(subjects, noise_multiplier, noise)
    for _ in range(recipe.steps):
        batch_S = poisson_sample(subjects, sample_rate)
        sum_D = clip_rows(gradients(batch_S), recipe.clip_norm).sum(axis=0)
        if noise_multiplier > 0:
            sum_D = add_gaussian_noise(
                sum_D, noise_multiplier=noise_multiplier, clip_norm=recipe.clip_norm, noise=noise
            )
        descend(recipe.learning_rate * sum_D / divisor)


def subject_gradients(
    scorer: LoraScorer,
    data: SubjectTexts,
    tokens: Sequence[Sequence[int]],
    surface_I_S: torch.Tensor,
    batch_S: NDArray[np.bool_],
    at_once: int,
) -> FloatArray:
    """[subjects in the batch, D]: the gradient of each one's mean loss, before any clipping.

    A text that several subjects compared is read once for each, so that its gradient belongs to one of them.
    """
    row_S = np.cumsum(batch_S) - 1
    size = sum(module.weight.numel() for module in scorer.trained().values())
    rows_S_D = np.zeros((int(batch_S.sum()), size))
    share_C = data.shares()
    mine_C = np.flatnonzero(batch_S[data.subject_C])
    with _per_text_gradients(scorer) as per_text:
        for start in range(0, len(mine_C), at_once):
            some_C = mine_C[start : start + at_once]
            texts_N = np.concatenate([data.chosen_C[some_C], data.rejected_C[some_C]])
            score_N = scorer([tokens[text] for text in texts_N], surface_I_S[texts_N])
            chosen, rejected = score_N.split(len(some_C))
            loss = (torch.from_numpy(share_C[some_C]).float() * softplus(rejected - chosen)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            owner_N = row_S[np.tile(data.subject_C[some_C], 2)]
            np.add.at(rows_S_D, owner_N, per_text())
    return rows_S_D


@contextmanager
def _per_text_gradients(scorer: LoraScorer) -> Iterator[Any]:
    """A function that takes the gradients [texts, D] of the backward pass just made; D in the order of `trained`."""
    try:
        from opacus import GradSampleModule
    except ImportError as error:
        raise ConfigurationError("training inner-layer LoRA needs Opacus.", mend="pip install opacus") from error
    hooked = {name: GradSampleModule(module, loss_reduction="sum") for name, module in scorer.trained().items()}

    def take() -> FloatArray:
        parts = []
        for module in scorer.trained().values():
            weight: Any = module.weight  # Opacus puts `grad_sample` [texts, *shape] beside `grad`
            parts.append(weight.grad_sample.flatten(1).double().numpy())
            weight.grad_sample = weight.grad = None
        gradients_N_D: FloatArray = np.concatenate(parts, axis=1)
        return gradients_N_D

    try:
        yield take
    finally:
        for module in hooked.values():
            module._close()


def _descend(scorer: LoraScorer, step_D: FloatArray) -> None:
    start = 0
    with torch.no_grad():
        for module in scorer.trained().values():
            weight = module.weight
            part = step_D[start : start + weight.numel()].reshape(tuple(weight.shape))
            weight -= torch.from_numpy(part).to(weight.dtype)
            start += weight.numel()


def _targets(encoder: torch.nn.Module, layers: int) -> dict[str, torch.nn.Linear]:
    """Query and value projections of the last layers, by name."""
    found: dict[int, dict[str, torch.nn.Linear]] = {}
    for name, module in encoder.named_modules():
        *path, last = name.split(".")
        numbers = [int(part) for part in path if part.isdigit()]
        if last in QUERY_AND_VALUE and numbers and isinstance(module, torch.nn.Linear):
            found.setdefault(numbers[0], {})[name] = module
    if len(found) < layers:
        raise ConfigurationError(
            f"{type(encoder).__name__} has {len(found)} layers whose query and value are known, not {layers}.",
            mend="Use fewer layers, or a BERT-, ModernBERT-, Llama- or Qwen-type backbone.",
        )
    return {name: module for layer in sorted(found)[-layers:] for name, module in found[layer].items()}


def _put(encoder: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(parent), last, module)


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return array
