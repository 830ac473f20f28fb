"""What a text says in letters: hashed character n-grams, the plain neighbour of the encoder's meaning.

Two statements with one more "not" lie close together for an encoder that was trained on topics, and far apart for the
people who judge them. On Polis, adding these counts to a frozen encoder raised the accuracy on new statements by 2 to
3 points (deploy/decisions/0006-items-first.md). Feature hashing: Weinberger et al. 2009 (arXiv:0902.2206); no
vocabulary has to be learned, kept or matched, in any language.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

BUCKETS = 1 << 15
LENGTHS = (3, 4, 5)
MAX_CHARACTERS = 2000  # what bounds the cost of a hostile text
WORD = re.compile(r"[^\W_]+")


def ngram_counts(text: str) -> Counter[int]:
    """Bucket -> count of the n-grams of `text`, words being separated by one space."""
    line = f" {' '.join(WORD.findall(text[:MAX_CHARACTERS].lower()))} "
    data = line.encode()
    return Counter(zlib.crc32(data[i : i + n]) % BUCKETS for n in LENGTHS for i in range(len(data) - n + 1))


def count_matrix(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """[N, BUCKETS]: square roots of the counts, so that a word said ten times does not count ten times."""
    indices: list[int] = []
    values: list[float] = []
    starts = [0]
    for text in texts:
        counts = ngram_counts(text)
        indices.extend(counts)
        values.extend(counts.values())
        starts.append(len(indices))
    data = np.sqrt(np.array(values, dtype=np.float64))
    return scipy.sparse.csr_matrix((data, np.array(indices, np.int64), np.array(starts)), (len(texts), BUCKETS))


def inverse_frequencies(counts_N_V: scipy.sparse.csr_matrix) -> NDArray[np.float32]:
    """[BUCKETS]: log(N / texts that have it); 0 for what is in one text alone, or in more than 30% of them: those say
    who wrote, not what."""
    texts = counts_N_V.shape[0]
    having_V = np.bincount(counts_N_V.indices, minlength=counts_N_V.shape[1])
    useful_V = (having_V >= 2) & (having_V <= max(2, 0.3 * texts))
    weights_V: NDArray[np.float32] = np.where(useful_V, np.log(texts / np.maximum(having_V, 1)), 0.0).astype(np.float32)
    return weights_V


def unit_rows(counts_N_V: scipy.sparse.csr_matrix, weights_V: NDArray[np.float32]) -> scipy.sparse.csr_matrix:
    """Weighted and scaled to length 1; a text without any known n-gram stays zero."""
    weighted = counts_N_V.copy()
    weighted.data = weighted.data * weights_V[weighted.indices].astype(np.float64)
    weighted.eliminate_zeros()
    norms_N = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    weighted.data = weighted.data / np.repeat(np.maximum(norms_N, 1e-12), np.diff(weighted.indptr))
    return weighted
