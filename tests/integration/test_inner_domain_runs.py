"""`idiolect train domain --layers`: a private LoRA of inner layers as a release like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from training_home import NEW, TENANT, Home
from typer.testing import CliRunner, Result

from idiolect.errors import ConfigurationError, IdiolectError
from idiolect.registry.weights import verify_version
from idiolect_adapters.lora.reward_model import RewardModel, beside_of
from idiolect_adapters.preference import load_model
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_adapters.runtime.loras import LoraEngine
from idiolect_adapters.training.domain_lora import LoraOptions
from idiolect_services.cli import app
from idiolect_services.scorer import Scorer
from idiolect_services.stacks import DomainStack

INNER = LoraOptions(layers=1)


def run(home: Home, *words: str) -> Result:
    options = ["--home", str(home.installation.root), "--tenant", TENANT]
    result = CliRunner().invoke(app, [*words, *options], env={"COLUMNS": "300"})
    if isinstance(result.exception, IdiolectError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def served(home: Home, person: str | None, **fields: Any) -> Any:
    engine = LoraEngine(home.model)
    features = FeatureCache(home.model, max_bytes=1 << 20, project_stacked=engine.project)
    bank = AdapterBank(home.model, home.installation.whole_version, home.installation.signer, engine=engine)
    return home.scored(Scorer(home.store, features, bank), person, domain="chat", **fields)


def test_it_is_signed_claimed_charged_and_served_as_plain_peft_scores_it(home: Home, tmp_path: Path) -> None:
    said = run(home, "train", "domain", "chat", "--layers", "1").output
    assert "domain chat: 1 published" in said
    version = home.store.resolve(TENANT, None, "chat").domain.id
    stored = home.store.version(TENANT, version)
    template = stored.template
    verify_version(template, home.store.with_weights(stored).version, home.installation.signer)
    (charged,) = home.store.runs(TENANT)
    head = home.model.recipes.domain
    assert template.run == charged.id
    assert template.privacy.unit == "subject"
    assert template.privacy.steps == charged.event.steps == INNER.releases(head) == 1 + head.steps + INNER.steps
    assert "score" in template.targets
    assert [name for name in template.targets if "layer.0." in name] == []
    assert sum("layer.1." in name for name in template.targets) == 2
    contributors = home.store.contributors(TENANT, "chat")
    assert {home.spent(person, "subject") for person in contributors} == {charged.event.rho}
    run(home, "registry", "export-peft", version, str(tmp_path / "out"))
    model = load_model(home.installation.models, home.model.digest)
    pairs = [(item.prompt, item.text) for item in home.world.items[:8]]
    ids, beside = model.backbone.tokenize(pairs).ids, beside_of(model, pairs)
    with torch.inference_mode():
        expected = PeftModel.from_pretrained(RewardModel.of(model), tmp_path / "out")(ids, beside).numpy()
    np.testing.assert_allclose(served(home, None).score_N, expected, rtol=1e-4, atol=1e-5)


def test_the_user_part_of_a_score_has_the_bits_that_it_had(home: Home) -> None:
    home.trainer().train_users(TENANT)
    person = home.person(NEW[0])
    before = served(home, person)
    home.trainer().train_domain(TENANT, "chat", inner=INNER)
    after = served(home, person)
    assert any(after.user_N)
    assert after.user_N == before.user_N
    assert after.global_N == before.global_N
    assert after.domain_N != before.domain_N
    sums = [(g + d) + u for g, d, u in zip(after.global_N, after.domain_N, after.user_N, strict=True)]
    assert after.score_N == sums


def test_it_is_rolled_back_and_revoked_shown_and_compared_like_any_other(home: Home) -> None:
    trained = []
    for inner in (None, INNER, INNER):
        home.trainer(domain_epsilon=1.0).train_domain(TENANT, "chat", inner=inner)
        trained.append(home.store.resolve(TENANT, None, "chat").domain.id)
    head, before, inner = trained
    release = home.store.version(TENANT, inner).version.release
    assert "verified" in run(home, "registry", "show", inner).output
    assert "all feedback in chat" in run(home, "registry", "card", release).output
    assert "cosine" in run(home, "registry", "diff", before, inner, "--probe", "how fish|fish tree house").output
    run(home, "registry", "promote", head, "--reason", "a test")
    run(home, "registry", "promote", inner, "--reason", "a test")
    run(home, "registry", "rollback", "--domain", "chat", "--reason", "back")
    assert served(home, None).personalization.domain == head
    run(home, "registry", "promote", inner, "--reason", "forth")
    assert served(home, None).personalization.domain == inner
    run(home, "registry", "revoke", release, "--reason", "bad")
    assert served(home, None).personalization.domain == before  # the newest that is not revoked


def test_people_are_trained_on_top_of_it(home: Home) -> None:
    home.trainer().train_domain(TENANT, "chat", inner=INNER)
    home.trainer().train_users(TENANT)
    items = list(home.world.items[:4])
    bare = home.model.project([(item.prompt, item.text) for item in items])
    applied = DomainStack(home.installation, home.model, TENANT).applied(items, bare)
    np.testing.assert_allclose(applied[:, 0], served(home, None).score_N[:4], rtol=1e-6, atol=1e-6)
    assert np.array_equal(applied[:, 1 : 1 + home.model.user_rank], bare[:, 1 : 1 + home.model.user_rank])


def test_what_this_model_can_not_do_is_refused_before_anybody_is_charged(
    home: Home,
) -> None:
    with pytest.raises(ConfigurationError, match="2 layers"):
        run(home, "train", "domain", "chat", "--layers", "3")
    home.model.head.user_basis_K_F[0, 0] = 1.0
    with pytest.raises(ConfigurationError, match="user directions read"):
        home.trainer().train_domain(TENANT, "chat", inner=INNER)
    assert home.store.runs(TENANT) == []
    assert home.store.releases(TENANT) == []
