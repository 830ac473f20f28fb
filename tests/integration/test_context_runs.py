"""`idiolect train domain --task --language`: what is read, what the manifest says, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training_home import TENANT, Home, RecordedNoise
from typer.testing import CliRunner

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.registry.weights import verify_version
from idiolect.signals.comparison import Item, PreferenceDataset, Rating
from idiolect.signals.context import Context
from idiolect.stores.ports import ImportOptions
from idiolect_adapters.training.domain_lora import LoraOptions
from idiolect_services.cli import app
from idiolect_services.datasets import import_dataset

GERMAN = [("Wo ist der Bahnhof?", f"Antwort {n} vom Bahnhof" + " bitte" * n) for n in range(6)]
ENGLISH = [("Where is it?", f"an answer of {n}" + " words" * n) for n in range(6)]


@pytest.fixture
def mixed(home: Home) -> Home:
    """Domain `mixed` has both languages, and who likes long German texts likes short English ones; domain `german` has
    the German ones alone, judged by the same people."""
    items = (
        *(Item("mixed", prompt, text, "de", "reply") for prompt, text in GERMAN),
        *(Item("mixed", prompt, text, "en") for prompt, text in ENGLISH),
        *(Item("german", prompt, text, "de", "reply") for prompt, text in GERMAN),
    )
    values = [float(n) for n in (*range(6), *range(5, -1, -1), *range(6))]
    ratings = tuple(Rating(f"p{p}", item, value) for p in range(12) for item, value in enumerate(values))
    ratings += tuple(Rating("english alone", item, values[item]) for item in range(6, 12))
    dataset = PreferenceDataset("languages", "c" * 64, items, ratings)
    import_dataset(home.installation, TENANT, dataset, ImportOptions(public=True, opt_in=False), lambda *_: None)
    return home


def weights(home: Home, domain: str, **options: Any) -> np.ndarray:
    home.trainer(noise=RecordedNoise(), domain_budget_epsilon=50.0).train_domain(TENANT, domain, **options)
    stored = home.store.version(TENANT, home.store.resolve(TENANT, None, domain).domain.id)
    (tensor,) = verify_version(stored.template, stored.version, home.installation.signer).values()
    return tensor[0]


def test_only_what_was_said_within_the_context_is_read(mixed: Home) -> None:
    german = weights(mixed, "german")
    assert np.abs(german).max() > 1e-3
    for context in (Context(languages=("de",)), Context(("reply",)), Context(("reply",), ("de",))):
        np.testing.assert_allclose(weights(mixed, "mixed", context=context), german, rtol=1e-4, atol=1e-6)
    assert np.abs(weights(mixed, "mixed") - german).max() > 1e-3


def test_the_manifest_says_so_and_everybody_of_the_domain_is_charged(mixed: Home) -> None:
    words = ["train", "domain", "mixed", "--language", "de", "--task", "reply", "--language", "de"]
    result = CliRunner().invoke(app, [*words, "--home", str(mixed.installation.root), "--tenant", TENANT])
    assert result.exit_code == 0, result.output
    template = mixed.store.version(TENANT, mixed.store.resolve(TENANT, None, "mixed").domain.id).template
    assert template.to_json()["context"] == {"tasks": ["reply"], "languages": ["de"]}
    assert template.data_window == "feedback in mixed of task reply; language de"
    (run,) = mixed.store.runs(TENANT)
    assert mixed.store.version_lineage(TENANT, mixed.store.resolve(TENANT, None, "mixed").domain.id).accounts == 13
    assert run.state == "settled"


@pytest.mark.parametrize("context", [Context(("summary",)), Context(("reply",), ("en",)), Context(languages=("DE",))])
def test_where_no_text_is_of_that_context_nobody_is_charged(mixed: Home, context: Context) -> None:
    with pytest.raises(NotFoundError, match="has no texts of") as refused:
        mixed.trainer().train_domain(TENANT, "mixed", context=context)
    assert refused.value.mend == "There are texts of: no task in en, reply in de."
    assert list(mixed.store.runs(TENANT)) == []


@pytest.mark.parametrize("inner", [None, LoraOptions(layers=1)])
def test_where_texts_are_but_nobody_judged_them_noise_is_published_and_nothing_is_told(
    mixed: Home, inner: LoraOptions | None
) -> None:
    """A refusal would say that nobody did, which nobody was charged for."""
    unjudged = (Item("mixed", "Où?", "une réponse", "fr"), Item("mixed", "Où?", "une autre réponse", "fr"))
    dataset = PreferenceDataset("french", "f" * 64, unjudged, ())
    import_dataset(mixed.installation, TENANT, dataset, ImportOptions(public=True, opt_in=False), lambda *_: None)
    report = mixed.trainer().train_domain(TENANT, "mixed", context=Context(languages=("fr",)), inner=inner)
    assert report.published == 1


def test_a_language_that_is_none_is_refused_by_the_command(mixed: Home) -> None:
    words = ["train", "domain", "mixed", "--language", "low german"]
    result = CliRunner().invoke(app, [*words, "--home", str(mixed.installation.root), "--tenant", TENANT])
    assert isinstance(result.exception, InvalidInputError)
    assert "not a language tag" in str(result.exception)
