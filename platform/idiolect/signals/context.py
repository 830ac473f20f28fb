"""For which kinds of task, and in which languages, an adapter was trained: declared by whoever trained it.

It says what a training was told to read, never what was found in the data. A domain adapter alone has one: in which
languages one person reads, and for which tasks they were asked, is theirs, and stands in no manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idiolect.errors import CorruptArtifactError, InvalidInputError

MAX_NAME_CHARS = 64
MAX_CHARS = 300  # of all in words: a manifest says it in a line
LANGUAGE_TAG = re.compile(r"[A-Za-z0-9-]{1,35}")  # BCP 47


@dataclass(frozen=True, slots=True)
class Context:
    """Sorted names without repetition; an empty tuple stands for any. At least one is not empty."""

    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidInputError naming what is not usable."""
        for names in (self.tasks, self.languages):
            if names != tuple(sorted(set(names))):
                raise InvalidInputError("a context names tasks and languages once each, in order.")
        for task in self.tasks:
            if not (0 < len(task) <= MAX_NAME_CHARS and task.isprintable()):
                raise InvalidInputError(
                    f"task {task[:40]!r} is not a name.", mend=f"Use at most {MAX_NAME_CHARS} printable characters."
                )
        for language in self.languages:
            if LANGUAGE_TAG.fullmatch(language) is None:
                raise InvalidInputError(
                    f"language {language[:40]!r} is not a language tag.", mend="Use one like en or pt-BR."
                )
        if not self.tasks and not self.languages:
            raise InvalidInputError("a context names no task and no language.", mend="Leave it out.")
        if len(str(self)) > MAX_CHARS:
            raise InvalidInputError("a context names too many tasks or languages.", mend="Train on all of them.")

    def covers(self, task: str, language: str) -> bool:
        """Whether a text of this task (empty: not said) and language is within it. A language is its tag, whole."""
        return (not self.tasks or task in self.tasks) and (not self.languages or language in self.languages)

    def __str__(self) -> str:
        parts = [(name, names) for name, names in (("task", self.tasks), ("language", self.languages)) if names]
        return "; ".join(f"{name} {' or '.join(names)}" for name, names in parts)

    def to_json(self) -> dict[str, Any]:
        return {"tasks": list(self.tasks), "languages": list(self.languages)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Context:
        """Raises CorruptArtifactError for a field too many or too few, or one that is not usable."""
        if set(data) != {"tasks", "languages"}:
            raise CorruptArtifactError(f"a release's context is said with the fields {sorted(data)}.")
        try:
            return Context(tuple(data["tasks"]), tuple(data["languages"]))
        except InvalidInputError as error:
            raise CorruptArtifactError(error.message, mend="Make the adapter again.") from error


def declared(tasks: Sequence[str], languages: Sequence[str]) -> Context | None:
    """What a person typed, in any order and repeated; None for nothing."""
    if not tasks and not languages:
        return None
    return Context(tuple(sorted(set(tasks))), tuple(sorted(set(languages))))
