"""What can be counted in a text: length, shape and tone.

An encoder pooled over tokens hardly knows how long a text is, and people differ in nothing more than in how long,
listed, warm or careful they like it. So these counts stand beside the encoder's features. The words behind the tone
features are English; in other languages they are zero and the others still work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
# None of these may look further than it needs to: a text can be 20,000 line breaks or exclamation marks.
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_BULLET = re.compile(r"^[^\S\n]*(?:[-*•]|\d{1,4}[.)])\s", re.MULTILINE)


def _word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_HEDGES = _word_set(
    "about apparently around could fairly generally guess likely may maybe might mostly often perhaps possibly "
    "probably rather seem seems should sometimes somewhat suggest tend usually would"
)
_WARM = _word_set(
    "appreciate enjoy glad good great happy hello help hi hope kind lovely nice please sorry sure thank thanks "
    "understand welcome wonderful"
)
_FIRST_PERSON = _word_set("i me my we us our i'm we're i've we've i'll we'll")
_SECOND_PERSON = _word_set("you your yours you're you've you'll")
_EXAMPLE = re.compile(r"\b(?:for example|for instance|e\.g\.|such as|say,|like this)|`", re.IGNORECASE)

NAMES = (
    "log_words",
    "log_sentences",
    "words_per_sentence",
    "letters_per_word",
    "bullets",
    "line_breaks",
    "questions",
    "exclamations",
    "commas_per_word",
    "digits",
    "capitals",
    "contractions",
    "first_person",
    "second_person",
    "hedges",
    "warmth",
    "examples",
    "distinct_words",
)


def surface_features(texts: Sequence[str]) -> NDArray[np.float32]:
    """[N, len(NAMES)] of the texts, finite, about 0..5; the same text gives the same row in any company."""
    return np.array([_features(text) for text in texts], dtype=np.float32).reshape(len(texts), len(NAMES))


def _features(text: str) -> tuple[float, ...]:
    words = [word.lower() for word in _WORD.findall(text)]
    count = max(len(words), 1)
    sentences = max(len(_SENTENCE_END.findall(text)), 1)
    characters = max(len(text), 1)

    def share(members: frozenset[str]) -> float:
        return 10.0 * sum(word in members for word in words) / count

    return (
        math.log1p(len(words)),
        math.log1p(sentences),
        min(len(words) / sentences, 60.0) / 10.0,
        min(sum(map(len, words)) / count, 15.0) / 3.0,
        math.log1p(len(_BULLET.findall(text))),
        math.log1p(text.count("\n")),
        math.log1p(text.count("?")),
        math.log1p(text.count("!")),
        10.0 * min(text.count(",") / count, 0.5),
        10.0 * sum(character.isdigit() for character in text) / characters,
        10.0 * sum(character.isupper() for character in text) / characters,
        10.0 * sum("'" in word or "’" in word for word in words) / count,
        share(_FIRST_PERSON),
        share(_SECOND_PERSON),
        share(_HEDGES),
        share(_WARM),
        math.log1p(len(_EXAMPLE.findall(text))),
        3.0 * len(set(words)) / count,
    )
