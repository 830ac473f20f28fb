"""The shipped sample: true to its README, and refused with file and line where it is broken."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.signals.comparison import Comparison, PreferenceDataset
from idiolect.signals.importers.sample import load_sample
from idiolect.signals.importers.sample_format import ATTRIBUTES, read_sample, words

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "sample"
DOMAIN_FILE = "code-review.jsonl"
TASTE_NAMES = {"brief", "thorough", "warm", "blunt", "careful", "formal", "casual", "skimmer", "concrete"}


@pytest.fixture(scope="module")
def sample() -> PreferenceDataset:
    return load_sample(FOLDER)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "sample"))


@pytest.fixture(scope="module")
def styles() -> dict[str, dict[str, float]]:
    """The attributes of every answer, by its text."""
    prompts = [prompt for of_domain in read_sample(FOLDER).prompts.values() for prompt in of_domain]
    return {
        answer.text: {"length": float(np.log(words(answer.text))), **answer.style.model_dump()}
        for prompt in prompts
        for answer in prompt.answers
    }


def everything(sample: PreferenceDataset) -> list[Comparison]:
    return [*sample.comparisons, *sample.adaptation, *(c for part in sample.evaluation.values() for c in part)]


def prompts_of(sample: PreferenceDataset, comparisons: Iterable[Comparison]) -> set[str]:
    return {sample.items[comparison.chosen].prompt for comparison in comparisons}


def pairs_of(comparisons: Iterable[Comparison]) -> dict[str, list[frozenset[int]]]:
    pairs = defaultdict(list)
    for comparison in comparisons:
        pairs[comparison.person].append(frozenset((comparison.chosen, comparison.rejected)))
    return pairs


def test_the_sample_has_the_counts_that_its_readme_states(sample: PreferenceDataset) -> None:
    assert dict(sample.report) == {
        "domains": 3,
        "prompts": 80,
        "prompts_held_out": 20,
        "items": 320,
        "people": 300,
        "new_people": 60,
        "comparisons": 300 * 48,
        "adaptation": 60 * 30,
        "test_known": 60 * 12,
        "test_new": 60 * 16,
    }
    assert len(sample.comparisons) == 300 * 48
    assert {part: len(choices) for part, choices in sample.evaluation.items()} == {"test_known": 720, "test_new": 960}
    assert sample.name == "sample"
    per_domain = Counter(domain for domain, _ in {(item.domain, item.prompt) for item in sample.items})
    assert per_domain == {"support-replies": 27, "code-review": 27, "news-summaries": 26}


def test_prompts_and_answers_have_the_stated_lengths(sample: PreferenceDataset) -> None:
    assert [item.prompt for item in sample.items if not 10 <= words(item.prompt) <= 40] == []
    assert [item.text for item in sample.items if not 8 <= words(item.text) <= 90] == []


def test_every_prompt_has_a_short_and_a_much_longer_answer(sample: PreferenceDataset) -> None:
    lengths = defaultdict(list)
    for item in sample.items:
        lengths[item.prompt].append(words(item.text))
    assert [prompt for prompt, counts in lengths.items() if max(counts) < 1.8 * min(counts)] == []


def test_no_answer_is_used_twice(sample: PreferenceDataset) -> None:
    assert len({item.text for item in sample.items}) == len(sample.items)


def test_an_answer_is_annotated_with_bullets_exactly_if_it_has_them(styles: dict[str, dict[str, float]]) -> None:
    wrong = [
        text
        for text, style in styles.items()
        if style["bullets"] != any(line.startswith("- ") for line in text.split("\n"))
    ]
    assert wrong == []


def test_an_answer_that_says_for_example_is_annotated_with_an_example(styles: dict[str, dict[str, float]]) -> None:
    said = [style["examples"] for text, style in styles.items() if "for example" in text or "for instance" in text]
    assert len(said) > 40
    assert all(said)


def test_no_two_attributes_are_confounded(styles: dict[str, dict[str, float]]) -> None:
    values_I_A = np.array([[style[name] for name in ATTRIBUTES] for style in styles.values()])
    correlations = np.corrcoef(values_I_A.T) - np.eye(len(ATTRIBUTES))
    assert np.abs(correlations).max() < 0.5


def test_every_position_in_a_prompt_has_every_style(sample: PreferenceDataset, styles: dict[str, Any]) -> None:
    for name, values in {"warmth": (-1, 1), "hedging": (-1, 1), "formality": (-1, 1), "bullets": (1,)}.items():
        seen = Counter((index % 4, styles[item.text][name]) for index, item in enumerate(sample.items))
        assert min(seen[position, value] for position in range(4) for value in values) >= 8, name


def test_comparisons_are_between_two_answers_of_one_prompt(sample: PreferenceDataset) -> None:
    for comparison in everything(sample):
        chosen, rejected = sample.items[comparison.chosen], sample.items[comparison.rejected]
        assert comparison.chosen != comparison.rejected
        assert (chosen.domain, chosen.prompt) == (rejected.domain, rejected.prompt)


def test_held_out_prompts_are_never_trained_on(sample: PreferenceDataset) -> None:
    held_out = prompts_of(sample, sample.evaluation["test_new"])
    trained = prompts_of(sample, [*sample.comparisons, *sample.adaptation, *sample.evaluation["test_known"]])
    assert len(held_out) == 20
    assert len(trained) == 60
    assert not held_out & trained


def test_new_people_are_not_on_the_panel_and_every_taste_has_several(sample: PreferenceDataset) -> None:
    assert not {comparison.person for comparison in sample.comparisons} & sample.new_people
    assert {comparison.person for comparison in sample.adaptation} == sample.new_people
    assert "panel-017" in {comparison.person for comparison in sample.comparisons}
    counts = Counter(person.rsplit("-", 1)[0] for person in sample.new_people)
    assert set(counts) == TASTE_NAMES
    assert min(counts.values()) >= 6


def test_no_pair_is_shown_to_a_person_twice(sample: PreferenceDataset) -> None:
    for person, pairs in pairs_of(everything(sample)).items():
        assert len(set(pairs)) == len(pairs), person


def test_loading_twice_gives_the_same_choices(sample: PreferenceDataset) -> None:
    assert load_sample(FOLDER) == sample


def test_the_order_of_the_lines_does_not_move_the_held_out_prompts(sample: PreferenceDataset, copied: Path) -> None:
    for path in copied.glob("*.jsonl"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    turned = load_sample(copied)
    assert prompts_of(turned, turned.evaluation["test_new"]) == prompts_of(sample, sample.evaluation["test_new"])
    assert turned.digest != sample.digest


def test_another_seed_gives_other_choices_on_the_same_texts(sample: PreferenceDataset, copied: Path) -> None:
    change_tastes(copied, lambda tastes: tastes.update(seed=1))
    other = load_sample(copied)
    assert other.items == sample.items
    assert other.comparisons != sample.comparisons
    assert other.digest != sample.digest


def test_more_people_do_not_change_what_the_others_chose(sample: PreferenceDataset, copied: Path) -> None:
    change_tastes(copied, lambda tastes: tastes["people"].update(panel=310))
    assert load_sample(copied).comparisons[: len(sample.comparisons)] == sample.comparisons


@pytest.mark.parametrize(
    ("taste", "opposite", "attribute", "least"),
    [
        ("thorough", "brief", "length", 0.5),
        ("careful", "blunt", "hedging", 0.5),
        ("formal", "casual", "formality", 0.5),
        ("warm", "blunt", "warmth", 0.4),
        ("skimmer", "formal", "bullets", 0.4),
        ("concrete", "blunt", "examples", 0.3),
    ],
)
def test_people_of_different_tastes_choose_differently(
    sample: PreferenceDataset, styles: dict[str, Any], taste: str, opposite: str, attribute: str, least: float
) -> None:
    def share_with_more(name: str) -> float:
        gains = [
            styles[sample.items[c.chosen].text][attribute] - styles[sample.items[c.rejected].text][attribute]
            for c in everything(sample)
            if c.person.startswith(f"{name}-")
        ]
        unequal = [gain for gain in gains if gain != 0]
        assert len(unequal) > 100
        return float(np.mean([gain > 0 for gain in unequal]))

    assert share_with_more(taste) - share_with_more(opposite) > least


def test_domains_have_a_shared_taste(sample: PreferenceDataset, styles: dict[str, Any]) -> None:
    gains = defaultdict(list)
    for comparison in sample.comparisons:
        chosen, rejected = sample.items[comparison.chosen], sample.items[comparison.rejected]
        gains[chosen.domain].append(styles[chosen.text]["length"] - styles[rejected.text]["length"])
    assert np.mean(gains["code-review"]) < np.mean(gains["support-replies"]) - 0.05


def test_choices_are_mostly_but_not_always_those_of_the_taste(
    sample: PreferenceDataset, styles: dict[str, Any]
) -> None:
    """A line fitted to one taste's own choices explains most of them, and not all: the noise is there."""
    spread = {name: np.std([style[name] for style in styles.values()]) for name in ATTRIBUTES}
    chosen_first = []
    for comparison in everything(sample):
        if comparison.person.startswith("brief-"):
            chosen, rejected = (styles[sample.items[i].text] for i in (comparison.chosen, comparison.rejected))
            chosen_first.append([(chosen[name] - rejected[name]) / spread[name] for name in ATTRIBUTES])
    gains_C_A = np.array(chosen_first)
    weights_A = np.linalg.lstsq(gains_C_A, np.ones(len(gains_C_A)), rcond=None)[0]
    assert 0.78 < np.mean(gains_C_A @ weights_A > 0) < 0.97
    assert np.argmax(np.abs(weights_A)) == ATTRIBUTES.index("length")


def change_line(folder: Path, line: int, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / DOMAIN_FILE
    lines = path.read_text().split("\n")
    row = json.loads(lines[line - 1])
    change(row)
    lines[line - 1] = json.dumps(row)
    path.write_text("\n".join(lines))


def change_tastes(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tastes = json.loads((folder / "tastes.json").read_text())
    change(tastes)
    (folder / "tastes.json").write_text(json.dumps(tastes))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row["answers"].pop(), "answers: List should have at least 4 items"),
        (lambda row: row["answers"].append(row["answers"][0]), "answers: List should have at most 4 items"),
        (lambda row: row["answers"][2]["style"].update(sarcasm=1), "answers.2.style.sarcasm"),
        (lambda row: row["answers"][1]["style"].pop("warmth"), "answers.1.style.warmth"),
        (lambda row: row["answers"][0]["style"].update(warmth=2), "answers.0.style.warmth"),
        (lambda row: row["answers"][0]["style"].update(bullets=True), "answers.0.style.bullets"),
        (lambda row: row["answers"][0]["style"].update(hedging=float("nan")), "answers.0.style.hedging"),
        (lambda row: row["answers"][3].update(text=" \n "), "empty_text"),
        (lambda row: row["answers"][3].update(text="- ..."), "no_word"),
        (lambda row: row["answers"][3].update(text=17), "answers.3.text"),
        (lambda row: row["answers"][3].update(text=row["answers"][0]["text"]), "two answers are the same"),
        (lambda row: row.update(prompt=""), "empty_text"),
        (lambda row: row.update(author="someone"), "author"),
        (lambda row: row.pop("prompt"), "prompt: Field required"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_and_number(
    copied: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    change_line(copied, 5, change)
    with pytest.raises(InvalidInputError) as refused:
        load_sample(copied)
    assert f"{DOMAIN_FILE} line 5: " in refused.value.message
    assert named in refused.value.message
    assert refused.value.mend


@pytest.mark.parametrize("bad", [b"not json", b'{"prompt": "Half', b"[]", b"", b"\xff\xfe", b"null"])
def test_a_line_that_is_not_an_object_is_refused_with_its_file_and_number(copied: Path, bad: bytes) -> None:
    lines = (copied / DOMAIN_FILE).read_bytes().split(b"\n")
    lines[2] = bad
    (copied / DOMAIN_FILE).write_bytes(b"\n".join(lines))
    with pytest.raises(InvalidInputError, match=rf"{DOMAIN_FILE} line 3: "):
        load_sample(copied)


def test_a_prompt_that_occurs_twice_is_refused_even_in_another_domain(copied: Path) -> None:
    first = (copied / "support-replies.jsonl").read_text().split("\n")[0]
    change_line(copied, 4, lambda row: row.update(prompt=json.loads(first)["prompt"]))
    with pytest.raises(InvalidInputError, match=rf"support-replies.jsonl line 1: .*{DOMAIN_FILE} line 4"):
        load_sample(copied)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tastes: tastes["tastes"][1]["weights"].update(humour=1.0), "tastes.1.weights.humour"),
        (lambda tastes: tastes["tastes"][1]["weights"].update(length=float("inf")), "tastes.1.weights.length"),
        (lambda tastes: tastes["tastes"][0].update(name="Brief!"), "tastes.0.name"),
        (lambda tastes: tastes["tastes"][0].update(name="warm"), "named twice"),
        (lambda tastes: tastes["tastes"][0].update(name="panel"), "'panel'"),
        (lambda tastes: tastes.update(tastes=[]), "tastes: List should have at least 1 item"),
        (lambda tastes: tastes.update(seed="lucky"), "seed"),
        (lambda tastes: tastes["people"].update(panel=0), "people.panel"),
        (lambda tastes: tastes["people"].update(new=10**9), "people.new"),
        (lambda tastes: tastes["domain_tastes"].update(poetry={"length": 1.0}), "'poetry'"),
    ],
)
def test_bad_tastes_are_refused_with_the_place(
    copied: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    change_tastes(copied, change)
    with pytest.raises(InvalidInputError) as refused:
        load_sample(copied)
    assert "tastes.json: " in refused.value.message
    assert named in refused.value.message
    assert refused.value.mend


def test_tastes_that_are_not_json_are_refused_with_the_line(copied: Path) -> None:
    (copied / "tastes.json").write_text('{"seed": 1,\n "people": oops}')
    with pytest.raises(InvalidInputError, match=r"tastes.json: .* line 2"):
        load_sample(copied)


def test_more_comparisons_than_there_are_pairs_are_refused(copied: Path) -> None:
    change_tastes(copied, lambda tastes: tastes.update(comparisons_per_person=361))
    with pytest.raises(InvalidInputError, match=r"360 training .*lower comparisons_per_person"):
        load_sample(copied)


def test_too_few_prompts_to_hold_some_out_are_refused(copied: Path) -> None:
    for path in copied.glob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(InvalidInputError, match="Add prompts"):
        load_sample(copied)


@pytest.mark.parametrize("prepare", [lambda folder: None, Path.mkdir])
def test_a_folder_without_a_sample_is_refused(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    prepare(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match=r"nothing has no \*.jsonl file"):
        load_sample(tmp_path / "nothing")


def test_a_missing_tastes_file_is_refused_by_name(copied: Path) -> None:
    (copied / "tastes.json").unlink()
    with pytest.raises(ConfigurationError, match=r"tastes.json can't be read: No such file"):
        load_sample(copied)


def test_a_file_name_that_can_not_be_a_domain_is_refused(copied: Path) -> None:
    (copied / DOMAIN_FILE).rename(copied / "Code Review.jsonl")
    with pytest.raises(InvalidInputError, match=r"Code Review.jsonl: domain 'Code Review'"):
        load_sample(copied)


def test_the_digest_covers_which_file_a_line_is_in(sample: PreferenceDataset, copied: Path) -> None:
    change_tastes(copied, lambda tastes: tastes.update(domain_tastes={}))
    before = load_sample(copied)
    (copied / DOMAIN_FILE).rename(copied / "code-reviews.jsonl")
    after = load_sample(copied)
    assert len({sample.digest, before.digest, after.digest}) == 3
    renamed = [replace(item, domain=item.domain.replace("code-reviews", "code-review")) for item in after.items]
    assert renamed == list(before.items)
