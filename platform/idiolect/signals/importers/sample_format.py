"""The files of the shipped sample, checked: `<domain>.jsonl` with one prompt and four answers a line, `tastes.json`.

Whatever is refused is refused with the file and the line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.ids import check_name
from idiolect.signals.importers.building import unusable_text

TASTES = "tastes.json"
ANSWERS_PER_PROMPT = 4
PANEL = "panel"
_CORRECT_IT = "Correct it, or restore the file from the repository."

Attribute = Literal["length", "warmth", "hedging", "formality", "examples", "bullets"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
Weights = dict[Attribute, Annotated[float, Field(ge=-10, le=10)]]
Degree = Annotated[int, Field(ge=-1, le=1)]
Flag = Annotated[int, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Style(_Strict):
    """-1 is cold, blunt, casual; 1 is warm, careful, formal."""

    warmth: Degree
    hedging: Degree
    formality: Degree
    examples: Flag
    bullets: Flag


class Answer(_Strict):
    text: str
    style: Style


class Prompt(_Strict):
    prompt: str
    answers: Annotated[list[Answer], Field(min_length=ANSWERS_PER_PROMPT, max_length=ANSWERS_PER_PROMPT)]


class Taste(_Strict):
    name: Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
    about: Annotated[str, Field(min_length=1)]
    weights: Weights


class PeopleCounts(_Strict):
    panel: Annotated[int, Field(ge=1, le=10_000)]
    new: Annotated[int, Field(ge=1, le=10_000)]


class Tastes(_Strict):
    """The hidden side of the simulation: what `tastes.json` states."""

    seed: int
    people: PeopleCounts
    comparisons_per_person: Annotated[int, Field(ge=1)]
    domain_tastes: dict[str, Weights]
    tastes: Annotated[list[Taste], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class SampleFiles:
    """`prompts` by domain; `digest` is a sha256 over all files, in the order of their names."""

    prompts: Mapping[str, Sequence[Prompt]]
    tastes: Tastes
    digest: str


Model = TypeVar("Model", bound=_Strict)


def read_sample(folder: Path) -> SampleFiles:
    """Raises ConfigurationError for files that are missing, InvalidInputError for what can't be right in one."""
    contents = _read_files(folder)
    prompts = {
        _domain(folder / name): _parse_prompts(folder / name, data) for name, data in contents.items() if name != TASTES
    }
    _check_unique(prompts, folder)
    tastes = _parse_tastes(folder / TASTES, contents[TASTES], set(prompts))
    return SampleFiles(prompts, tastes, _digest(contents))


def _read_files(folder: Path) -> dict[str, bytes]:
    """The sample's files by name, in sorted order."""
    names = sorted({TASTES, *(path.name for path in folder.glob("*.jsonl"))})
    if names == [TASTES]:
        raise ConfigurationError(
            f"{folder} has no *.jsonl file, so it is not the sample.",
            mend="Point to deploy/sample of the repository.",
        )
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} can't be read: {error.strerror}.",
            mend="Restore the file from the repository, or mend its permissions.",
        ) from error


def _digest(contents: Mapping[str, bytes]) -> str:
    """Names and lengths are hashed too: moving a line to another file gives another data set."""
    whole = hashlib.sha256()
    for name, data in contents.items():
        whole.update(f"{name}\0{len(data)}\0".encode())
        whole.update(data)
    return whole.hexdigest()


def _domain(path: Path) -> str:
    return check_name(f"{path}: domain", path.stem)


def _parse(model: type[Model], data: bytes, where: str) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise InvalidInputError(f"{where}: {place}: {first['msg']}.", mend=_CORRECT_IT) from None


def _parse_prompts(path: Path, data: bytes) -> list[Prompt]:
    """One for each line; blank lines are an error too, so that line n is prompt n."""
    prompts = []
    for line, row in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{path} line {line}"
        prompt = _parse(Prompt, row, where)
        _check_texts(prompt, where)
        prompts.append(prompt)
    return prompts


def _check_texts(prompt: Prompt, where: str) -> None:
    texts = [answer.text for answer in prompt.answers]
    for text in (prompt.prompt, *texts):
        if reason := unusable_text(text) or ("no_word" if not words(text) else None):
            raise InvalidInputError(f"{where}: {reason}: {text[:60]!r}.", mend=_CORRECT_IT)
    if len(set(texts)) < len(texts):
        raise InvalidInputError(f"{where}: two answers are the same.", mend=_CORRECT_IT)


def _check_unique(prompts: Mapping[str, Sequence[Prompt]], folder: Path) -> None:
    """A prompt that occurs twice could be held out and trained on at once."""
    first: dict[str, str] = {}
    for domain, of_domain in prompts.items():
        for line, prompt in enumerate(of_domain, start=1):
            where = f"{folder / domain}.jsonl line {line}"
            if prompt.prompt in first:
                raise InvalidInputError(
                    f"{where}: the prompt occurs already in {first[prompt.prompt]}.", mend="Remove one of the two."
                )
            first[prompt.prompt] = where


def _parse_tastes(path: Path, data: bytes, domains: set[str]) -> Tastes:
    tastes = _parse(Tastes, data, str(path))
    names = [taste.name for taste in tastes.tastes]
    if PANEL in names or len(set(names)) < len(names):
        raise InvalidInputError(f"{path}: a taste is named twice, or {PANEL!r}.", mend="Give each a name of its own.")
    if unknown := sorted(set(tastes.domain_tastes) - domains):
        raise InvalidInputError(
            f"{path}: domain_tastes names {unknown[0]!r}, which is not a domain here.",
            mend=f"Use {', '.join(sorted(domains))}.",
        )
    return tastes


def words(text: str) -> int:
    """Tokens between white space that have a letter or digit: the dash of a bullet is not a word."""
    return sum(any(character.isalnum() for character in token) for token in text.split())
