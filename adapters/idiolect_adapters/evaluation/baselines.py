"""What a personal model must beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.data import SharedData

FloatArray = NDArray[np.float64]


def item_means(data: SharedData) -> FloatArray:
    """[I]: how well liked each item is, whoever asks: the mean of its ratings; where a data set holds comparisons only,
    the share that it won. An item that nobody judged gets the mean of the others, so it ties with the average.
    """
    items = len(data.items)
    if len(data.ratings):
        item_J, value_J = data.ratings.item_R, data.ratings.value_R
        weight_J = np.ones(len(item_J))
    else:
        pairs = data.comparisons
        item_J = np.concatenate([pairs.chosen_C, pairs.rejected_C])
        value_J = np.repeat(np.array([1.0, 0.0], np.float32), len(pairs))
        weight_J = np.tile(pairs.weight_C, 2)
    totals_I = np.bincount(item_J, weight_J * value_J, minlength=items)
    counts_I = np.bincount(item_J, weight_J, minlength=items)
    judged_I = counts_I > 0
    means_I = np.divide(totals_I, counts_I, out=np.zeros(items), where=judged_I)
    filled_I: FloatArray = np.where(judged_I, means_I, means_I[judged_I].mean() if judged_I.any() else 0.0)
    return filled_I
