"""User adapters against an ordinary LoRA per person: the same people, pairs, stack below and privacy.

Both get the first n adaptation pairs of a person and add to the same scores. The peer's learning rate is chosen for
every epsilon, as our recipes are, on people of the public training data whom the global model was not trained on; its
clip norm is the median length of their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.privacy.accountant import noise_multiplier_for
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.evaluation.accuracy import MIN_PAIRS, Accuracy, bootstrap_mean, person_accuracies
from idiolect_adapters.evaluation.peer_lora import LoraPeer, LoraRecipe, PersonPairs
from idiolect_adapters.evaluation.splits import NewPeople
from idiolect_adapters.evaluation.stacks import Epsilon, margins
from idiolect_adapters.training.build import tuning_people
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.pairs import groups, person_pairs
from idiolect_adapters.training.tuning import UserRecipes, split_pairs
from idiolect_adapters.training.user import pad_comparisons, train_users

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]

# A step costs the peer most of a second. Fewer steps need less noise each, and the learning rate makes up for them.
STEPS = 5
PAIRS_DRAWN = 8  # for each pair that is adapted to: about a third are
LEARNING_RATES = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, slots=True)
class Stack:
    """What both sides add to, for all I items: `below_I` are the scores without a user adapter, `global_I` those of the
    global model alone, which the peer starts from.
    """

    global_I: FloatArray
    below_I: FloatArray
    taste_I_K: FloatArray


@dataclass(frozen=True, slots=True)
class Compared:
    """Of one part. `gain` is ours minus the peer's, person by person."""

    part: str
    epsilon: Epsilon
    ours: Accuracy
    lora: Accuracy
    gain: Accuracy


def some_people(new: NewPeople, pairs: int, limit: int) -> NewPeople:
    """The first `limit` of those who can be compared: at least `pairs` adaptation pairs, and enough in every part."""
    count = len(new.people)

    def at_least(comparisons: Comparisons, least: int) -> NDArray[np.bool_]:
        enough_P: NDArray[np.bool_] = np.bincount(comparisons.person_C, minlength=count) >= least
        return enough_P

    kept_P = at_least(new.adaptation, pairs)
    for part in new.parts.values():
        kept_P &= at_least(part, MIN_PAIRS)
    kept = np.flatnonzero(kept_P)[:limit]

    def of_them(comparisons: Comparisons) -> Comparisons:
        inside = comparisons.where(np.isin(comparisons.person_C, kept))
        renamed_C = np.searchsorted(kept, inside.person_C).astype(np.int32)
        return Comparisons(renamed_C, inside.chosen_C, inside.rejected_C, inside.weight_C)

    parts = {name: of_them(part) for name, part in new.parts.items()}
    return NewPeople(tuple(new.people[index] for index in kept), of_them(new.adaptation), parts)


def held_out_people(data: SharedData, pairs: int) -> NewPeople:
    """The people of the training data whom the global model was not trained on, as if they were new: adaptation pairs,
    and pairs of other items to be tested on.
    """
    mask_P = tuning_people(data)
    mask_R = mask_P[data.ratings.person_R]
    ratings = Ratings(data.ratings.person_R[mask_R], data.ratings.item_R[mask_R], data.ratings.value_R[mask_R])
    comparisons = data.comparisons.where(mask_P[data.comparisons.person_C])
    group_I, rng = groups(data.items), np.random.default_rng(0)
    held_out = person_pairs(ratings, comparisons, group_I, limit=PAIRS_DRAWN * pairs, rng=rng)
    split = split_pairs(held_out, group_I, rng)
    return NewPeople(data.people, split.adapt, {"tuning": split.test})


def compare(
    peer: LoraPeer,
    recipe: LoraRecipe,
    ours: UserRecipes,
    people: NewPeople,
    stack: Stack,
    pairs: int,
    epsilon: Epsilon,
    noise: NoiseSource,
    progress: Progress,
) -> list[Compared]:
    """Both sides on `people`, for each of their parts."""
    mine = _our_margins(ours, people, stack, pairs, epsilon, noise)
    theirs = lora_margins(peer, recipe, people, stack, pairs, epsilon, progress)
    found = []
    for name, part in people.parts.items():
        mine_P, theirs_P = (person_accuracies(by_part[name], part.person_C) for by_part in (mine, theirs))
        found.append(
            Compared(name, epsilon, bootstrap_mean(mine_P), bootstrap_mean(theirs_P), bootstrap_mean(mine_P - theirs_P))
        )
    return found


def choose_lora(
    peer: LoraPeer,
    people: NewPeople,
    stack: Stack,
    pairs: int,
    epsilons: Sequence[Epsilon],
    progress: Progress,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Mapping[Epsilon, LoraRecipe]:
    """For every epsilon the recipe that is best on `people`, of the training data."""
    norms = [peer.gradient_norms(pairs_of(people, person, stack, pairs)) for person in range(len(people.people))]
    clip_norm = float(max(np.median(np.concatenate(norms)), 1e-3)) if norms else 1.0
    grid = [LoraRecipe(rate, clip_norm, STEPS) for rate in learning_rates]
    chosen = {}
    for done, epsilon in enumerate(epsilons):
        values = [_value(peer, recipe, people, stack, pairs, epsilon) for recipe in grid]
        chosen[epsilon] = grid[int(np.argmax(values))]
        progress(done + 1, len(epsilons))
    return chosen


def _value(peer: LoraPeer, recipe: LoraRecipe, people: NewPeople, stack: Stack, pairs: int, epsilon: Epsilon) -> float:
    found = lora_margins(peer, recipe, people, stack, pairs, epsilon, lambda _done, _total: None)
    shares = [person_accuracies(found[name], part.person_C, min_pairs=1) for name, part in people.parts.items()]
    return float(np.mean(np.concatenate(shares))) if people.people else 0.0


def lora_margins(
    peer: LoraPeer,
    recipe: LoraRecipe,
    people: NewPeople,
    stack: Stack,
    pairs: int,
    epsilon: Epsilon,
    progress: Progress,
) -> dict[str, FloatArray]:
    """Per part [C]: the margin of each pair under its person's LoRA."""
    margins_of = {name: np.zeros(len(part)) for name, part in people.parts.items()}
    multiplier = 0.0 if epsilon is None else noise_multiplier_for(epsilon, DEFAULT_DELTA, recipe.steps)
    offset_I = stack.below_I - stack.global_I
    for person in range(len(people.people)):
        peer.train(pairs_of(people, person, stack, pairs), recipe, multiplier)
        for name, part in people.parts.items():
            rows = np.flatnonzero(part.person_C == person)
            own = part.where(part.person_C == person)
            items, index = np.unique(np.concatenate([own.chosen_C, own.rejected_C]), return_inverse=True)
            chosen_C, rejected_C = np.split((peer.scores(items) + offset_I[items])[index], 2)
            margins_of[name][rows] = chosen_C - rejected_C
        progress(person + 1, len(people.people))
    return margins_of


def pairs_of(people: NewPeople, person: int, stack: Stack, pairs: int) -> PersonPairs:
    """The first `pairs` adaptation pairs of a person, and what the stack adds to the global model's margin of each."""
    own = people.adaptation.where(people.adaptation.person_C == person)
    first = own.where(np.arange(len(own)) < pairs)
    offsets_C = margins(stack.below_I - stack.global_I, first)
    return PersonPairs(first.chosen_C.astype(np.int64), first.rejected_C.astype(np.int64), offsets_C)


def _our_margins(
    recipes: UserRecipes, people: NewPeople, stack: Stack, pairs: int, epsilon: Epsilon, noise: NoiseSource
) -> dict[str, FloatArray]:
    recipe = recipes.at(epsilon)
    everyone = np.arange(len(people.people))
    adaptation = people.adaptation
    padded = pad_comparisons(adaptation, everyone, stack.taste_I_K, margins(stack.below_I, adaptation), limit=pairs)
    multiplier = 0.0 if epsilon is None else noise_multiplier_for(epsilon, DEFAULT_DELTA, recipe.steps)
    adapters_P_K = train_users(padded, recipe, multiplier, noise)
    found = {}
    for name, part in people.parts.items():
        difference_C_K = stack.taste_I_K[part.chosen_C] - stack.taste_I_K[part.rejected_C]
        found[name] = margins(stack.below_I, part) + (difference_C_K * adapters_P_K[part.person_C]).sum(axis=1)
    return found
