"""From a folder on disk to a tenant's store: read with an importer, put pseudonyms in place of ids, store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import PreferenceDataset
from idiolect.signals.importers import IMPORTERS, load_polis
from idiolect.signals.importers.sample import load_sample
from idiolect.stores.ports import ImportOptions, ImportOutcome
from idiolect_services.wiring import Installation

Progress = Callable[[int, int], None]
ALL = "all"  # every language


def sample_folder() -> Path:
    """The sample that ships with Idiolect: beside the package in a wheel, in the checkout otherwise."""
    packaged = Path(__file__).parent / "sample_data"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "deploy" / "sample"


def read_dataset(kind: str, path: Path, progress: Progress, languages: Sequence[str] = ()) -> PreferenceDataset:
    """`languages`: of the texts to read, where a format says it; the importer's own choice if none is named."""
    if languages and kind != "polis":
        raise InvalidInputError(
            f"{kind} does not say in which language a text is.", mend="Leave --language out; only polis knows it."
        )
    if kind == "sample":
        dataset = load_sample(path)
        progress(1, 1)
        return dataset
    if kind not in IMPORTERS:
        raise InvalidInputError(f"format {kind!r} is not known.", mend=f"Use one of {sorted([*IMPORTERS, 'sample'])}.")
    if languages:
        return load_polis(path, progress, languages=None if ALL in languages else frozenset(languages))
    return IMPORTERS[kind](path, progress)


def import_dataset(
    installation: Installation, tenant: str, dataset: PreferenceDataset, options: ImportOptions, progress: Progress
) -> ImportOutcome:
    """Idempotent: exactly the same content is not stored twice."""
    now = installation.clock.now()
    installation.store.create_tenant(tenant, now)
    return installation.store.import_dataset(
        tenant, with_pseudonyms(dataset, lambda person: installation.pseudonym(tenant, person)), options, now, progress
    )


def with_pseudonyms(dataset: PreferenceDataset, pseudonym: Callable[[str], str]) -> PreferenceDataset:
    """The same data set with every person's id replaced."""
    name = cache(pseudonym)
    return replace(
        dataset,
        ratings=tuple(replace(rating, person=name(rating.person)) for rating in dataset.ratings),
        comparisons=tuple(replace(pair, person=name(pair.person)) for pair in dataset.comparisons),
        new_people=frozenset(name(person) for person in dataset.new_people),
        adaptation=tuple(replace(pair, person=name(pair.person)) for pair in dataset.adaptation),
        evaluation={
            part: tuple(replace(pair, person=name(pair.person)) for pair in pairs)
            for part, pairs in dataset.evaluation.items()
        },
    )
