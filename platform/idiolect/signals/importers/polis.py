"""Polis: agree and disagree votes on short statements, in public conversations.

`comments.jsonl.gz` has conv, lang, topic, comment, text, moderated; `votes.jsonl.gz` has conv, user, comment, vote
(1 agree, -1 disagree, 0 pass), t. A conversation is a domain, its topic (if it has one) the prompt, a statement an
item.

The last vote of a person on a statement counts, by its time where both have one and else by its place in the file; a
later pass withdraws an earlier vote. A language that is asked for covers its regions: `en` also `en-GB` (RFC 4647,
3.3.1). Statements of one conversation with the same text are one item. With
`benchmark_split.json` and `benchmark_new_users.jsonl.gz` in the folder, the split is exactly theirs; without them, one
of the same kind is made from hashes of the ids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Item, PreferenceDataset, Rating
from idiolect.signals.importers.building import DomainNames, ItemTable, People, build_dataset, unusable_text
from idiolect.signals.importers.holdout import Holdout, HoldoutRule, hold_out
from idiolect.signals.importers.polis_benchmark import BENCHMARK_FILES, has_benchmark, read_benchmark
from idiolect.signals.importers.reading import DataFiles, Source
from idiolect.signals.importers.rows import Row, moment
from idiolect.stores.ports import Progress, no_progress

COMMENTS = "comments.jsonl.gz"
VOTES = "votes.jsonl.gz"
NO_TOPIC = "Do you agree?"  # the prompt of a conversation that names no topic
ENGLISH = frozenset({"en"})
SOURCE = "vote"
_RULE = HoldoutRule(source=SOURCE, new_item_share=0.3, min_known_items=2, min_known_pairs=8)

_OTHER_LANGUAGE = -1
_LEFT_OUT = -2

Votes = Mapping[str, Mapping[int, tuple[float, int | None]]]  # person -> item -> (1 or -1, milliseconds)


@dataclass(frozen=True, slots=True)
class _Statements:
    """`index[conversation][comment]` is an item, or one of the two negative marks."""

    items: list[Item]
    item_ids: list[str]
    index: Mapping[str, Mapping[str, int]]
    moderated_out: frozenset[int]


def load_polis(
    path: Path, progress: Progress = no_progress, *, languages: frozenset[str] | None = ENGLISH
) -> PreferenceDataset:
    """Statements in `languages` (None: all) and the votes on them. Raises InvalidInputError."""
    benchmark = has_benchmark(path)
    files = DataFiles(path, (COMMENTS, VOTES, *(BENCHMARK_FILES if benchmark else ())), progress)
    everything = _read_statements(files, languages)
    all_votes = _read_votes(files, everything)
    statements, votes = _without_unvoted(files, everything, all_votes)
    holdout = (
        read_benchmark(files, statements.index, votes.keys(), SOURCE) if benchmark else _fresh_split(statements, votes)
    )
    ratings = _shared_ratings(votes, holdout)
    files.counts["votes_held_out"] = sum(map(len, votes.values())) - len(ratings)
    files.counts["statements_held_out"] = len(holdout.new_items)
    return build_dataset(
        "polis",
        files,
        statements.items,
        ratings=ratings,
        holdout=holdout,
        options=[f"languages {' '.join(sorted(languages)) if languages is not None else 'all'}"],
    )


def _read_statements(files: DataFiles, languages: frozenset[str] | None) -> _Statements:
    source = files.source(COMMENTS, "statements")
    names, table, item_ids, moderated = DomainNames(), ItemTable(), list[str](), dict[int, bool]()
    index: dict[str, dict[str, int]] = defaultdict(dict)
    others = Counter[str]()
    for row in source:
        conversation, comment = row.identifier("conv"), row.identifier("comment")
        if comment in index[conversation]:
            source.leave_out("repeated_id")
            continue
        item, is_moderated = _statement(row, names[conversation]), row.integer("moderated") < 0
        if item.prompt == NO_TOPIC:
            source.count("without_a_topic")
        mark = _mark(source, item, languages)
        if mark == _OTHER_LANGUAGE:
            others[item.language] += 1
        if mark is None:
            mark = table.add(item)
            moderated[mark] = is_moderated and moderated.get(mark, True)
            if mark == len(item_ids):
                item_ids.append(f"{conversation}:{comment}")
            else:
                source.count("with_a_text_read_before")
        index[conversation][comment] = mark
    if not table.items:
        raise _no_statement(files, languages, others)
    out = frozenset(item for item, is_out in moderated.items() if is_out)
    return _Statements(table.items, item_ids, index, out)


def _no_statement(files: DataFiles, languages: frozenset[str] | None, others: Counter[str]) -> InvalidInputError:
    asked = ", ".join(sorted(languages or ())) or "any language"
    there = ", ".join(f"{language} ({count:,})" for language, count in others.most_common(10))
    return InvalidInputError(
        f"{files.folder / COMMENTS} has no statement in {asked}{there and f', but in {there}'}.",
        mend="Ask for another one with --language, or for all of them with --language all.",
    )


def _statement(row: Row, domain: str) -> Item:
    return Item(domain, prompt=row.text_or("topic", NO_TOPIC), text=row.text("text"), language=row.language("lang"))


def _mark(source: Source, item: Item, languages: frozenset[str] | None) -> int | None:
    """None for a statement that is to be an item."""
    if languages is not None and not any(_covers(asked, item.language) for asked in languages):
        source.count("in_other_languages")
        return _OTHER_LANGUAGE
    reason = unusable_text(item.text) or unusable_text(item.prompt)
    if reason:
        source.leave_out(reason)
        return _LEFT_OUT
    return None


def _covers(asked: str, tag: str) -> bool:
    return f"{tag.lower()}-".startswith(f"{asked.lower()}-")


def _read_votes(files: DataFiles, statements: _Statements) -> Votes:
    source = files.source(VOTES, "votes")
    people = People()
    votes: dict[str, dict[int, tuple[float, int | None]]] = defaultdict(dict)
    for row in source:
        person, vote, time = people.read(row), _vote(row), row.milliseconds_or_none("t")
        item = statements.index.get(row.identifier("conv"), {}).get(row.identifier("comment"))
        if item is None or item == _LEFT_OUT:
            source.leave_out("unknown_statement" if item is None else "statement_left_out")
        elif item == _OTHER_LANGUAGE:
            source.count("in_other_languages")
        else:
            if not vote:
                source.count("pass")
            known, given = votes[person].get(item), (float(vote), time)
            if known is not None:
                known, given = (given, known) if _is_before(time, known[1]) else (known, given)
                if known[0]:
                    source.count("said_again" if known[0] == given[0] else "replaced_by_a_later_one")
            votes[person][item] = given
    return {person: {item: vote for item, vote in given.items() if vote[0]} for person, given in votes.items()}


def _is_before(time: int | None, other: int | None) -> bool:
    return time is not None and other is not None and time < other


def _vote(row: Row) -> int:
    vote = row.integer("vote")
    if vote not in (1, 0, -1):
        raise row.wrong(f"vote {str(vote)[:20]} is unknown.", "It must be 1 (agree), -1 (disagree) or 0 (pass).")
    return vote


def _without_unvoted(files: DataFiles, old: _Statements, votes: Votes) -> tuple[_Statements, Votes]:
    """Drop statements that were moderated out before anybody voted on them, and number the others again."""
    voted = {item for given in votes.values() for item in given}
    kept = [item for item in range(len(old.items)) if item in voted or item not in old.moderated_out]
    files.counts["statements_moderated_out_unvoted"] = len(old.items) - len(kept)
    number = {item: position for position, item in enumerate(kept)}
    statements = _Statements(
        items=[old.items[item] for item in kept],
        item_ids=[old.item_ids[item] for item in kept],
        index={
            conversation: {comment: item if item < 0 else number.get(item, _LEFT_OUT) for comment, item in ids.items()}
            for conversation, ids in old.index.items()
        },
        moderated_out=frozenset(number[item] for item in old.moderated_out if item in number),
    )
    return statements, {
        person: {number[item]: vote for item, vote in given.items()} for person, given in votes.items() if given
    }


def _fresh_split(statements: _Statements, votes: Votes) -> Holdout:
    values = {person: {item: value for item, (value, _) in given.items()} for person, given in votes.items()}
    return hold_out(statements.items, statements.item_ids, values, _RULE)


def _shared_ratings(votes: Votes, holdout: Holdout) -> list[Rating]:
    return [
        Rating(person, item, value, None if time is None else moment(time))
        for person, given in votes.items()
        if person not in holdout.new_people
        for item, (value, time) in given.items()
        if item not in holdout.new_items
    ]
