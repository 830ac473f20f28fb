"""The global model: encoder, reward head and user basis, trained together on declared public data.

The score of a person p for an item is w . f + P_p . A f. The Bradley-Terry loss runs over pairs that the same person
ordered; P_p is a latent vector per person with a Gaussian prior, so that A learns how people differ and w what they
share. To keep the two apart, P is centred over the people of each domain: what most people of a domain like is the
reward's business (without this a new person's ranking before any feedback loses several points;
deploy/decisions/0003-global-training.md). Afterwards the basis is whitened, and the latent vectors of the public
people are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from idiolect.errors import InvalidInputError
from idiolect.signals.data import SharedData
from idiolect_adapters.backbone import Backbone, Tokens
from idiolect_adapters.basis import principal_directions, whiten
from idiolect_adapters.preference import Head, text_features
from idiolect_adapters.surface import surface_features
from idiolect_adapters.training.pairs import Pairs, PairSource

Progress = Callable[[int, int], None]

MIN_ACTIVE_PAIRS = 5.0  # people with fewer pairs say little about how people differ


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Chosen on held-out training people; see deploy/decisions/0003-global-training.md."""

    epochs: int = 4
    user_rank: int = 12
    domain_rank: int = 16
    items_per_step: int = 16
    encoder_rate: float = 1e-4
    head_rate: float = 1e-3
    people_rate: float = 0.05
    weight_decay: float = 0.01
    prior: float = 1.0
    warmup_share: float = 0.06
    seed: int = 0


class _Latent(torch.nn.Module):
    """What is learned beside the encoder: reward head, basis, and one vector per public person."""

    def __init__(self, home_P: NDArray[np.int64], rank: int, features_N_F: NDArray[np.float32], seed: int) -> None:
        """`home_P`: the domain in which each person said most; who is left out has one of their own."""
        super().__init__()
        self.home_P = torch.from_numpy(home_P)
        self.home_size_D_1 = torch.bincount(self.home_P).clamp(min=1)[:, None]
        generator = torch.Generator().manual_seed(seed)
        self.mean_F = torch.nn.Buffer(torch.from_numpy(features_N_F.mean(axis=0)))
        self.reward_F = torch.nn.Parameter(torch.zeros(features_N_F.shape[1]))
        directions = principal_directions(features_N_F - features_N_F.mean(axis=0), rank)
        self.basis_K_F = torch.nn.Parameter(torch.from_numpy(directions))
        # Not zero: at P = 0 the basis would get no gradient.
        self.people_P_K = torch.nn.Parameter(0.1 * torch.randn(len(home_P), rank, generator=generator))

    def centred_people(self) -> torch.Tensor:
        """[P, K]: each person's vector less the mean of their home domain."""
        sums_D_K = torch.zeros(len(self.home_size_D_1), self.people_P_K.shape[1])
        means_D_K = sums_D_K.index_add(0, self.home_P, self.people_P_K) / self.home_size_D_1
        return self.people_P_K - means_D_K[self.home_P]

    def loss(self, features_I_F: torch.Tensor, pairs: Pairs, share_P: torch.Tensor, prior: float) -> torch.Tensor:
        """Mean weighted Bradley-Terry loss, plus the prior's share that belongs to these pairs."""
        centred_I_F = features_I_F - self.mean_F
        chosen, rejected = torch.from_numpy(pairs.chosen_B), torch.from_numpy(pairs.rejected_B)
        weight_B = torch.from_numpy(pairs.weight_B)
        reward_I = centred_I_F @ self.reward_F
        taste_I_K = centred_I_F @ self.basis_K_F.T
        person_B = torch.from_numpy(pairs.person_B)
        personal_B = (self.centred_people()[person_B] * (taste_I_K[chosen] - taste_I_K[rejected])).sum(1)
        data = (weight_B * softplus(-(reward_I[chosen] - reward_I[rejected] + personal_B))).sum()
        active = torch.unique(person_B)
        pull = 0.5 * prior * (share_P[active] * (self.people_P_K[active] ** 2).sum(1)).sum()
        total: torch.Tensor = (data + pull) / weight_B.sum()
        return total


def train_global(
    backbone: Backbone,
    data: SharedData,
    keep_P: NDArray[np.bool_],
    options: GlobalOptions,
    progress: Progress | None = None,
) -> Head:
    """Tune `backbone` in place on the pairs of the people in `keep_P`, and return the head that belongs to it.

    Cost: one forward and backward pass of the encoder per item and epoch, whatever the number of people.
    """
    source = PairSource(data, keep_P)
    items = source.used_items()
    if len(items) < 2:
        raise InvalidInputError(
            "there are no comparisons to train a global model on.",
            mend="Import a data set first: idiolect import --help.",
        )
    tokens = backbone.tokenize([(item.prompt, item.text) for item in data.items])
    start_I_F = text_features(backbone, [(data.items[i].prompt, data.items[i].text) for i in items])
    latent = _Latent(_home_domains(data, keep_P), options.user_rank, start_I_F, options.seed)
    surface_I_S = torch.from_numpy(surface_features([item.text for item in data.items]))
    pairs_P = _fit(backbone, latent, source, tokens, surface_I_S, options, progress)
    if not pairs_P.any():
        raise InvalidInputError(
            f"nobody compared any two of {len(items)} items of one prompt, or rated two of them differently.",
            mend="Import data with several candidates for a prompt.",
        )
    return _finish(backbone, latent, data, items, pairs_P, options)


def _fit(
    backbone: Backbone,
    latent: _Latent,
    source: PairSource,
    tokens: Tokens,
    surface_I_S: torch.Tensor,
    options: GlobalOptions,
    progress: Progress | None,
) -> NDArray[np.float64]:
    """The training loop. Returns how many pairs of each person were used per epoch."""
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)  # dropout
    plan = [chunk for _ in range(options.epochs) for chunk in source.chunks(options.items_per_step, rng)]
    optimizer = _optimizer(backbone, latent, options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(plan), options.warmup_share))
    share_P = _prior_shares(source.judgments_P, len(plan) / options.epochs)
    pairs_P = np.zeros(len(latent.people_P_K))
    backbone.encoder.train()
    for step, items in enumerate(plan):
        pairs = source.among(items, rng)
        optimizer.zero_grad()
        if len(pairs):
            np.add.at(pairs_P, pairs.person_B, 1.0 / options.epochs)
            pooled_I_H = backbone.pooled_by_length([tokens.ids[item] for item in items])
            features_I_F = torch.cat([pooled_I_H, surface_I_S[items].to(pooled_I_H.device)], dim=1)
            loss = latent.loss(features_I_F, pairs, share_P, options.prior)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(backbone.encoder.parameters(), 1.0)
        optimizer.step()  # does nothing where no pair gave a gradient
        schedule.step()
        if progress is not None:
            progress(step + 1, len(plan))
    backbone.encoder.eval()
    return pairs_P


def _prior_shares(judgments_P: NDArray[np.int64], steps: float) -> torch.Tensor:
    """The part of a person's prior that one step carries: one over the number of steps of an epoch in which they
    are expected to appear, so that the whole prior counts once an epoch."""
    expected_P = steps * (1.0 - (1.0 - 1.0 / max(steps, 1.0 + 1e-9)) ** judgments_P)
    return torch.from_numpy(1.0 / np.maximum(expected_P, 1.0)).float()


def _optimizer(backbone: Backbone, latent: _Latent, options: GlobalOptions) -> torch.optim.Optimizer:
    """The token embeddings stay as they are: few occur in any data set, and their dense gradient costs more time
    than all layers together."""
    backbone.encoder.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
    tuned = [parameter for parameter in backbone.encoder.parameters() if parameter.requires_grad]
    decay = options.weight_decay
    return torch.optim.AdamW(
        [
            {"params": tuned, "lr": options.encoder_rate, "weight_decay": decay},
            {"params": [latent.reward_F, latent.basis_K_F], "lr": options.head_rate, "weight_decay": decay},
            {"params": [latent.people_P_K], "lr": options.people_rate, "weight_decay": 0.0},
        ],
        fused=True,
    )


def _rate(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to almost nothing."""
    return min(1.0, (step + 1) / max(1.0, warmup_share * total)) * max(0.02, 1.0 - step / total)


def _home_domains(data: SharedData, keep_P: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[P]: the index of the domain in which each person rated or compared most.

    People who are not trained share an index of their own: their vectors mean nothing, and must not move the mean.
    """
    names = {name: index for index, name in enumerate(sorted({item.domain for item in data.items}))}
    domain_I = np.array([names[item.domain] for item in data.items])
    counts_P_D = np.zeros((len(data.people), len(names)), dtype=np.int64)
    np.add.at(counts_P_D, (data.ratings.person_R, domain_I[data.ratings.item_R]), 1)
    np.add.at(counts_P_D, (data.comparisons.person_C, domain_I[data.comparisons.chosen_C]), 1)
    home_P: NDArray[np.int64] = np.where(keep_P, counts_P_D.argmax(axis=1), len(names))
    return home_P


def _finish(
    backbone: Backbone,
    latent: _Latent,
    data: SharedData,
    items: NDArray[np.int64],
    pairs_P: NDArray[np.float64],
    options: GlobalOptions,
) -> Head:
    features_I_F = text_features(backbone, [(data.items[i].prompt, data.items[i].text) for i in items])
    mean_F = features_I_F.mean(axis=0)
    weights_P_K = latent.centred_people().detach().double().numpy()
    active_P = pairs_P >= min(MIN_ACTIVE_PAIRS, float(pairs_P.max()))
    basis_K_F = latent.basis_K_F.detach().double().numpy()
    whitened_K_F, mean_K = whiten(basis_K_F, weights_P_K[active_P])
    reward_F = latent.reward_F.detach().double().numpy() + mean_K @ basis_K_F
    return Head(
        mean_F=mean_F.astype(np.float32),
        reward_F=reward_F.astype(np.float32),
        user_basis_K_F=whitened_K_F.astype(np.float32),
        domain_basis_M_F=principal_directions(features_I_F - mean_F, options.domain_rank),
    )
