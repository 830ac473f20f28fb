"""Importers of published preference data: one function per format, from a path to a checked PreferenceDataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from idiolect.signals.comparison import PreferenceDataset
from idiolect.signals.importers.coauthor import load_coauthor
from idiolect.signals.importers.polis import load_polis
from idiolect.signals.importers.ratings import load_ratings
from idiolect.signals.importers.ukpconvarg import load_ukpconvarg
from idiolect.stores.ports import Progress

IMPORTERS: Mapping[str, Callable[[Path, Progress], PreferenceDataset]] = {
    "polis": load_polis,
    "ukpconvarg": load_ukpconvarg,
    "coauthor": load_coauthor,
    "ratings": load_ratings,
}

__all__ = ["IMPORTERS", "Progress", "load_coauthor", "load_polis", "load_ratings", "load_ukpconvarg"]
