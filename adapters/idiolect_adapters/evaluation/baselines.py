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
        totals_I = np.bincount(data.ratings.item_R, data.ratings.value_R, minlength=items)
        counts_I = np.bincount(data.ratings.item_R, minlength=items).astype(np.float64)
    else:
        pairs = data.comparisons
        totals_I = np.bincount(pairs.chosen_C, pairs.weight_C, minlength=items)
        counts_I = totals_I + np.bincount(pairs.rejected_C, pairs.weight_C, minlength=items)
    judged_I = counts_I > 0
    means_I = np.divide(totals_I, counts_I, out=np.zeros(items), where=judged_I)
    filled_I: FloatArray = np.where(judged_I, means_I, means_I[judged_I].mean() if judged_I.any() else 0.0)
    return filled_I
