"""LoRAs of inner layers on a home with a real, trained global model: the commands, training on top of one, and one that
was trained here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from training_home import NEW, TENANT, Home
from typer.testing import CliRunner, Result

from idiolect.errors import ConflictError, ConsentError, IdiolectError, InvalidInputError
from idiolect.ids import new_id
from idiolect.privacy.budget import statement_for
from idiolect.privacy.events import GaussianEvent
from idiolect.registry.pointers import Adapter
from idiolect.signals.comparison import Comparison, PreferenceDataset, Rating
from idiolect.stores.ports import ImportOptions
from idiolect_adapters.lora.reward_model import RewardModel, beside_of
from idiolect_adapters.lora.trained import trained_adapter
from idiolect_adapters.preference import PreferenceModel, load_model
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_adapters.runtime.loras import LoraEngine
from idiolect_services.cli import app
from idiolect_services.datasets import import_dataset
from idiolect_services.evaluation import evaluate_dataset
from idiolect_services.registering import Origin, Registrar
from idiolect_services.scorer import Scorer
from idiolect_services.stacks import DomainStack, live_adapter


def run(home: Home, *words: str) -> Result:
    options = ["--home", str(home.installation.root), "--tenant", TENANT]
    result = CliRunner().invoke(app, [*words, *options], env={"COLUMNS": "300"})
    if isinstance(result.exception, IdiolectError):
        raise result.exception
    return result


def fresh(home: Home) -> PreferenceModel:
    return load_model(home.installation.models, home.model.digest)


def trained_elsewhere(home: Home, folder: Path, seed: int = 0, **changes: Any) -> Path:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "score"]} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = get_peft_model(RewardModel.of(fresh(home)), LoraConfig(**options))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    return folder


@torch.inference_mode()
def plain_peft_scores(home: Home, folder: Path, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    model = fresh(home)
    ids, beside = model.backbone.tokenize(pairs).ids, beside_of(model, pairs)
    return PeftModel.from_pretrained(RewardModel.of(model), folder)(ids, beside).numpy().astype(np.float64)


def served(home: Home, person: str | None, domain: str | None) -> Any:
    engine = LoraEngine(home.model)
    features = FeatureCache(home.model, max_bytes=1 << 20, project_stacked=engine.project)
    bank = AdapterBank(home.model, home.installation.whole_version, home.installation.signer, engine=engine)
    return home.scored(Scorer(home.store, features, bank), person, domain=domain)


def pairs(home: Home) -> list[tuple[str, str]]:
    return [(item.prompt, item.text) for item in home.world.items[:8]]


def test_a_peft_folder_goes_in_and_out_and_scores_the_same_everywhere(home: Home, tmp_path: Path) -> None:
    folder = trained_elsewhere(home, tmp_path / "in")
    said = run(home, "registry", "add-peft", str(folder), "--domain", "chat", "--reason", "a test").output
    assert "Nothing is claimed about its privacy" in said
    version = home.store.resolve(TENANT, None, "chat").domain.id
    assert version in said
    result = served(home, None, "chat")
    assert result.personalization.domain == version
    expected = plain_peft_scores(home, folder, pairs(home))
    np.testing.assert_allclose(result.score_N, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(result.score_N, result.global_N, atol=1e-3)
    run(home, "registry", "export-peft", version, str(tmp_path / "out"))
    again = plain_peft_scores(home, tmp_path / "out", pairs(home))
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
    shown = run(home, "registry", "show", version).output
    assert "verified" in shown
    assert "idiolect-load-proof/1" in shown
    assert "Nothing is claimed" in run(home, "registry", "card", home.store.releases(TENANT)[0].id).output
    assert "none claimed" in run(home, "registry", "list").output
    with pytest.raises(ConflictError, match="exists already"):
        run(home, "registry", "export-peft", version, str(tmp_path / "out"))


def test_two_versions_are_compared_by_what_they_do(home: Home, tmp_path: Path) -> None:
    for seed in range(2):
        folder = trained_elsewhere(home, tmp_path / str(seed), seed=seed)
        run(home, "registry", "add-peft", str(folder), "--domain", "chat", "--reason", "a test")
    a, b = (stored.version.id for stored in home.store.versions(TENANT, domain="chat"))
    shown = run(home, "registry", "diff", a, b, "--probe", "how fish|fish tree house").output
    assert "how fish | fish tree house" in shown
    assert "cosine" in shown


def test_the_command_refuses_what_it_can_not_take_and_writes_nothing(home: Home, tmp_path: Path) -> None:
    folder, before = trained_elsewhere(home, tmp_path / "in"), home.store.audit_head(TENANT)
    add = ("registry", "add-peft", str(folder), "--reason", "a test")
    with pytest.raises(ConflictError, match="live global model"):
        run(home, *add, "--domain", "chat", "--global", "f" * 64)
    with pytest.raises(ConsentError):
        run(home, *add, "--user", "a stranger")
    with pytest.raises(InvalidInputError, match="whose adapter"):
        run(home, *add)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidInputError, match="pickle"):
        run(home, *add, "--domain", "chat")
    assert home.store.audit_head(TENANT) == before
    assert home.store.versions(TENANT) == []


def test_inner_layers_alone_change_nothing_where_the_head_reads_the_text_kernel_only(
    home: Home, tmp_path: Path
) -> None:
    assert not LoraEngine(home.model).head_reads_encoder
    folder = trained_elsewhere(home, tmp_path / "in", target_modules=["query", "value"])
    with pytest.raises(InvalidInputError, match="changes nothing") as caught:
        run(home, "registry", "add-peft", str(folder), "--domain", "chat", "--reason", "a test")
    assert caught.value.code == "changes_nothing"
    assert "target `score`" in caught.value.mend


def test_a_file_that_changes_after_it_was_read_changes_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained_elsewhere(home, tmp_path / "in")
    expected = plain_peft_scores(home, folder, pairs(home))
    real = Registrar.register

    def changed_under_us(self: Registrar, asked: Any) -> Any:
        (folder / "adapter_model.safetensors").write_bytes(b"something else")
        (folder / "adapter_config.json").write_bytes(b"{}")
        return real(self, asked)

    monkeypatch.setattr(Registrar, "register", changed_under_us)
    run(home, "registry", "add-peft", str(folder), "--domain", "chat", "--reason", "a test")
    np.testing.assert_allclose(served(home, None, "chat").score_N, expected, rtol=1e-5, atol=1e-5)


def test_people_are_trained_on_top_of_their_domains_lora(home: Home, tmp_path: Path) -> None:
    folder = trained_elsewhere(home, tmp_path / "in")
    run(home, "registry", "add-peft", str(folder), "--domain", "chat", "--reason", "a test")
    items = [replace(item, domain=domain) for item in home.world.items[:4] for domain in ("chat", "news")]
    bare = home.model.project([(item.prompt, item.text) for item in items])
    applied = DomainStack(home.installation, home.model, TENANT).applied(items, bare)
    assert np.array_equal(applied[1::2], bare[1::2])
    in_chat = [(item.prompt, item.text) for item in items[::2]]
    np.testing.assert_allclose(applied[::2, 0], plain_peft_scores(home, folder, in_chat), rtol=1e-5, atol=1e-5)
    home.trainer().train_users(TENANT)
    person = home.person(NEW[0])
    result = served(home, person, "chat")
    assert result.personalization.applied
    assert result.personalization.domain is not None


def test_an_evaluation_knows_a_person_by_their_own_lora(home: Home, tmp_path: Path) -> None:
    folder = trained_elsewhere(home, tmp_path / "in")
    user = f"person {NEW[0]}"
    run(home, "registry", "add-peft", str(folder), "--user", user, "--reason", "a test")
    person = home.person(NEW[0])
    stacks = DomainStack(home.installation, home.model, TENANT)
    lora = live_adapter(home.installation, TENANT, home.store.resolve(TENANT, person, None).user, stacks.engine)
    items = [replace(item, domain="chat") for item in home.world.items[:8]]
    for below in (None, "head", "lora"):
        if below == "head":
            home.trainer().train_domain(TENANT, "chat")
        if below == "lora":
            other = trained_elsewhere(home, tmp_path / "other", seed=1)
            run(home, "registry", "add-peft", str(other), "--domain", "chat", "--reason", "a test")
        result = served(home, person, "chat")
        assert result.personalization.applied
        found = DomainStack(home.installation, home.model, TENANT, stacks.engine).scored_under(lora, items)
        np.testing.assert_allclose(found, result.score_N, rtol=1e-6, atol=1e-6)
    asked = Comparison(user, 0, 1)
    dataset = PreferenceDataset(
        "asked", "f" * 64, home.world.items, (Rating("someone", 0, 1.0),), evaluation={"test": (asked,)}
    )
    import_dataset(home.installation, TENANT, dataset, ImportOptions(public=True, opt_in=False), lambda *_: None)
    judged = evaluate_dataset(home.installation, TENANT, "asked", lambda *_: None).judged
    assert judged[2].stack == "+ user"
    assert judged[2].curve != judged[1].curve


def test_what_the_private_training_makes_is_published_with_its_privacy_and_served(home: Home) -> None:
    """Charging the people whom it read is the training's business."""
    model = home.model
    rng = np.random.default_rng(0)
    layer = "encoder.layer.1.attention.self.query"
    hidden = model.backbone.hidden_size
    tensors = {
        "head.lora_B.weight": rng.normal(size=(1, model.domain_rank)).astype(np.float32) * 0.1,
        f"{layer}.lora_A.weight": rng.normal(size=(4, hidden)).astype(np.float32),
        f"{layer}.lora_B.weight": rng.normal(size=(hidden, 4)).astype(np.float32) * 0.1,
    }
    adapter = trained_adapter(model.head, tensors)
    engine = LoraEngine(fresh(home))
    registrar = Registrar(home.store, engine, home.installation.signer, home.installation.clock)
    statement = statement_for("subject", GaussianEvent(2.0, 10), 1.0, 1e-5)
    template = registrar.template(TENANT, "domain", adapter, Origin(statement, "all feedback in chat", "run-1"))
    version = registrar.version(template, adapter, Adapter("domain", "chat"), 0, new_id())
    home.store.publish(
        version.release, template, [version], home.installation.clock.now(), reason="trained", actor="trainer"
    )
    result = served(home, None, "chat")
    assert result.personalization.domain == version.id
    domain_M = tensors["head.lora_B.weight"][0].astype(np.float64)
    bare = home.model.project(pairs(home))
    assert not np.allclose(result.score_N, bare[:, 0] + bare[:, 1 + model.user_rank :] @ domain_M, atol=1e-4)
    released = home.store.releases(TENANT)[0]
    assert released.epsilon == pytest.approx(statement.epsilon)
