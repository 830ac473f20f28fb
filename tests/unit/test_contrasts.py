"""What directions mean: which texts are shown for them, and that a hostile one can't do more than be shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_preference_model import some_head, some_recipes

from idiolect.errors import CorruptArtifactError
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.contrasts import (
    CONTRASTS_FILE,
    EXAMPLES,
    MAX_CHARACTERS,
    Contrast,
    Contrasts,
    choose_contrasts,
    readable,
)
from idiolect_adapters.preference import load_model, save_model

ITEMS, K, M = 80, 2, 3


def chosen(votes: np.ndarray | None = None, prompts: int = 20) -> Contrasts:
    """The first user direction rises with the number of the item; the others are random but for one of zeros."""
    projected = np.random.default_rng(0).normal(size=(ITEMS, 1 + K + M))
    projected[:, 1], projected[:, -1] = np.arange(ITEMS), 0.0
    pairs = [(f"prompt {n % prompts}", f"text {n}") for n in range(ITEMS)]
    return choose_contrasts(projected, K, pairs, np.ones(ITEMS) if votes is None else votes)


def numbers(contrast: Contrast, end: str) -> list[int]:
    return [int(example.text.split()[1]) for example in getattr(contrast, end)]


def test_each_direction_shows_the_texts_at_its_ends() -> None:
    found = chosen()
    assert (len(found.user), len(found.domain)) == (K, M)
    assert numbers(found.user[0], "high") == [79, 78, 77]
    assert numbers(found.user[0], "low") == [0, 1, 2]


def test_the_texts_of_one_end_answer_different_prompts_where_there_are_some() -> None:
    for contrast in chosen(prompts=4).user:
        for end in (contrast.high, contrast.low):
            assert len({example.prompt for example in end}) == EXAMPLES
    assert len(chosen(prompts=1).user[0].high) == EXAMPLES


def test_what_nobody_or_hardly_anybody_judged_is_never_shown() -> None:
    votes = np.where(np.arange(ITEMS) < 50, 10.0, 1.0)
    votes[49] = 0.0
    assert numbers(chosen(votes).user[0], "high") == [48, 47, 46]
    assert chosen(np.zeros(ITEMS)).user[0] == Contrast()


def test_texts_that_only_a_flood_judged_are_not_shown_however_many_they_are() -> None:
    votes = np.where(np.arange(ITEMS) < 20, 10.0, 0.03)
    assert numbers(chosen(votes).user[0], "high") == [19, 18, 17]
    assert numbers(chosen(np.full(ITEMS, 0.25)).user[0], "high") == [79, 78, 77]


def test_a_direction_that_tells_nothing_apart_shows_nothing() -> None:
    assert chosen().domain[-1] == Contrast()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\n b\t c", "a b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("left\u202eright\u200b", "leftright"),
        ("\ud800 lone", " lone"),
        ("x" * 500, "x" * (MAX_CHARACTERS - 1) + "…"),
        ("<b>[red]", "<b>[red]"),
    ],
)
def test_a_text_becomes_one_short_line_without_control_characters(text: str, shown: str) -> None:
    assert readable(text) == shown


def test_contrasts_come_back_as_they_were_saved() -> None:
    found = chosen()
    assert Contrasts.load(found.dump(), K, M) == found


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b'{"user":[],"domain":[]}', b'{"user":[{"high":1,"low":[]}],"domain":0}']
)
def test_damaged_contrasts_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match=CONTRASTS_FILE):
        Contrasts.load(data, K, M)


def test_a_model_holds_its_contrasts_under_its_digest(tiny_bert: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(tiny_bert)
    head = some_head(backbone.hidden_size)
    ranks = len(head.user_basis_K_F), len(head.domain_basis_M_F)
    found = Contrasts((chosen().user[0],) * ranks[0], (Contrast(),) * ranks[1])
    model = save_model(tmp_path, backbone, head, some_recipes(), temperature=1.0, training={}, contrasts=found)
    assert load_model(tmp_path, model.digest).contrasts == found
    path = tmp_path / model.digest / CONTRASTS_FILE
    path.write_bytes(path.read_bytes().replace(b"text 79", b"text 97"))
    with pytest.raises(CorruptArtifactError):
        load_model(tmp_path, model.digest)
    shutil.rmtree(tmp_path / model.digest)
    without = save_model(tmp_path, backbone, head, some_recipes(), temperature=1.0, training={})
    assert load_model(tmp_path, without.digest).contrasts == Contrasts()
