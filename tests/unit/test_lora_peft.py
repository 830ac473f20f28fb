"""PEFT's format, both ways, with PEFT itself as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import AutoModelForSequenceClassification

from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError
from idiolect.settings import DEFAULT_BACKBONE
from idiolect_adapters.backbone import DEFAULT_PACKAGE, find_backbone
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_adapters.lora.peft_config import read_config
from idiolect_adapters.lora.peft_format import CONFIG_FILE, WEIGHTS_FILE, export_peft, head_adapter, import_peft
from idiolect_adapters.lora.reward_model import RewardModel, beside_of, surface_of
from idiolect_adapters.lora.spec import LoraAdapter, LoraSpec, linear_shapes
from idiolect_adapters.lora.weights import tensors_of
from idiolect_adapters.preference import PreferenceModel, beside_features, project_features
from idiolect_adapters.runtime.batched.reference import run_row
from idiolect_adapters.surface import NAMES
from lora_samples import random_adapter, reward_model
from tiny_models import save_tiny

PAIRS = [("", "alpha"), ("why tree", "warm stone river"), ("how", "a reply please thanks sorry " * 3)]
QUERY, VALUE = "encoder.encoder.layer.0.attention.self.query", "encoder.encoder.layer.1.attention.self.value"
OUTPUT = "encoder.encoder.layer.1.output.dense"


@pytest.fixture
def model(tiny_bert: Path) -> RewardModel:
    return reward_model(tiny_bert)


@torch.inference_mode()
def scores_of(model: Any) -> torch.Tensor:
    backbone = (model.base_model.model if isinstance(model, PeftModel) else model).backbone
    scores: torch.Tensor = model(backbone.tokenize(PAIRS).ids, surface_of([text for _, text in PAIRS]))
    return scores


def with_adapter(model: RewardModel, adapter: LoraAdapter) -> torch.Tensor:
    return run_row(model, [(adapter, 1.0)], lambda: scores_of(model))


def check_plain_peft_agrees(make: Callable[[], RewardModel], adapter: LoraAdapter, folder: Path) -> None:
    base = make()
    export_peft(adapter, folder, linear_shapes(base))
    expected = with_adapter(base, adapter)
    loaded = scores_of(PeftModel.from_pretrained(make(), folder))
    assert float((loaded - expected).abs().max()) < 1e-5
    assert float((scores_of(base) - expected).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": {QUERY: 4}},
        {"ranks": {QUERY: 4, VALUE: 7, OUTPUT: 1, "score": 3}, "alpha": {QUERY: 8, VALUE: 3, OUTPUT: 0.5, "score": 2}},
        {"ranks": {QUERY: 4, VALUE: 7}, "rslora": True},
        {"ranks": {QUERY: 4}, "saved": ("score",)},
        {"ranks": {QUERY: 4}, "saved": ("score", OUTPUT)},
        {"ranks": {"score": 5}},
    ],
)
def test_plain_peft_scores_an_exported_adapter_the_same(
    changes: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    adapter = random_adapter(reward_model(tiny_bert), **changes)
    check_plain_peft_agrees(lambda: reward_model(tiny_bert), adapter, tmp_path / "out")


@pytest.mark.parametrize("kind", ["modernbert", "llama", "qwen3"])
def test_every_kind_of_backbone_exports(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "backbone", kind)
    ends = ("Wqkv", "Wo", "q_proj", "down_proj")
    ranks = {name: 3 for name in linear_shapes(reward_model(folder)) if name.rpartition(".")[2] in ends}
    adapter = random_adapter(reward_model(folder), {**ranks, "score": 2})
    check_plain_peft_agrees(lambda: reward_model(folder), adapter, tmp_path / "out")


def test_a_user_adapter_is_an_ordinary_lora_on_the_head(tmp_path: Path) -> None:
    preference = random_model(tmp_path / "models")
    B_K = np.random.default_rng(0).standard_normal(preference.user_rank).astype(np.float32)
    adapter = head_adapter(preference.head.user_basis_K_F, B_K, alpha=6.0)
    check_user_adapter(preference, adapter, B_K, tmp_path / "out")
    projected = preference.project(PAIRS)
    part = projected[:, 1 : 1 + preference.user_rank] @ B_K.astype(np.float64) * (6.0 / preference.user_rank)
    loaded = scores_of(PeftModel.from_pretrained(RewardModel.of(preference), tmp_path / "out"))
    assert np.allclose(loaded.numpy(), projected[:, 0] + part, rtol=1e-5, atol=1e-5)


def check_user_adapter(
    preference: PreferenceModel, adapter: LoraAdapter, B_K: np.ndarray[Any, Any], folder: Path
) -> None:
    """Against a base that has nothing of ours but the features: a linear layer called `score`."""
    head = preference.head

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(len(head.mean_F), 1, bias=False)
            self.score.weight.data.copy_(torch.tensor(head.reward_F))

        def forward(self, centred_N_F: torch.Tensor) -> torch.Tensor:
            return self.score(centred_N_F)[:, 0]  # type: ignore[no-any-return]

    export_peft(adapter, folder, {"score": linear_shapes(Base())["score"]})
    centred_N_F = preference.features(PAIRS) - head.mean_F
    exact = centred_N_F.astype(np.float64)
    user = exact @ head.user_basis_K_F.astype(np.float64).T @ B_K * adapter.spec.scale("score")
    loaded = PeftModel.from_pretrained(Base(), folder)(torch.tensor(centred_N_F)).detach().numpy()
    assert np.allclose(loaded, exact @ head.reward_F + user, rtol=1e-5, atol=1e-5)


class Kernel:
    """Two outputs that depend on what the encoder makes of a text, and on its prompt."""

    outputs = 2

    def outputs_of(self, pooled_N_H: np.ndarray[Any, Any], pairs: Sequence[tuple[str, str]]) -> np.ndarray[Any, Any]:
        return np.stack([pooled_N_H[:, :3].sum(1), np.array([len(prompt) for prompt, _ in pairs])], axis=1)


def test_a_model_with_a_text_kernel_scores_the_same_as_one_module(tmp_path: Path) -> None:
    made = random_model(tmp_path)
    extra = np.ones(2, np.float32)
    head = replace(
        made.head,
        mean_F=np.concatenate([made.head.mean_F, extra]),
        reward_F=np.concatenate([made.head.reward_F, 2 * extra]),
        user_basis_K_F=np.pad(made.head.user_basis_K_F, ((0, 0), (0, 2)), constant_values=0.5),
        domain_basis_M_F=np.pad(made.head.domain_basis_M_F, ((0, 0), (0, 2))),
        kernel=cast(Any, Kernel()),
    )
    model = PreferenceModel(
        made.backbone, head, made.recipes, temperature=made.temperature, digest=made.digest, card=made.card
    )
    pooled_N_H = made.backbone.features(PAIRS)
    features_N_F = np.concatenate([pooled_N_H, beside_features(pooled_N_H, PAIRS, head.kernel)], axis=1)
    expected = project_features(features_N_F, head)[:, 0]
    with torch.inference_mode():
        scores = RewardModel.of(model)(made.backbone.tokenize(PAIRS).ids, beside_of(model, PAIRS))
    assert np.allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_real_backbone_exports_head_and_inner_layers(tmp_path: Path) -> None:
    pytest.importorskip(DEFAULT_PACKAGE)
    folder = find_backbone(DEFAULT_BACKBONE)
    adapter = random_adapter(reward_model(folder), {QUERY: 8, VALUE: 8, "score": 16}, size=0.05)
    check_plain_peft_agrees(lambda: reward_model(folder), adapter, tmp_path / "out")


def test_what_was_exported_is_imported_bit_for_bit(model: RewardModel, tmp_path: Path) -> None:
    adapter = random_adapter(model, {QUERY: 4, VALUE: 7}, alpha={QUERY: 8, VALUE: 0.5}, rslora=True, saved=("score",))
    export_peft(adapter, tmp_path / "out", linear_shapes(model))
    again = import_peft(tmp_path / "out", linear_shapes(model))
    assert again.spec == adapter.spec
    before, after = tensors_of(adapter), tensors_of(again)
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def trained_elsewhere(tiny_bert: Path, folder: Path, **options: Any) -> torch.Tensor:
    """A PEFT adapter on a classification model, saved by PEFT; and the hidden states that it gives."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1)
    wrapped = get_peft_model(base, LoraConfig(**({"r": 4, "target_modules": ["query", "value"]} | options)))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    with torch.inference_mode():
        hidden: torch.Tensor = wrapped.eval().base_model.model.bert(torch.arange(8)[None]).last_hidden_state
    return hidden


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layer.1.attention.self.value": 2, "query": 6}, "alpha_pattern": {"value": 3}},
        {"rank_pattern": {"^bert.encoder.layer.0.attention.self.query": 2}},
        {"alpha_pattern": {r"layer\.0.attention.self..uery": 32}},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": ".*(query|intermediate.dense)"},
        {"target_modules": "all-linear", "layers_to_transform": None},
    ],
)
def test_an_adapter_that_peft_trained_elsewhere_gives_the_same_hidden_states(
    options: dict[str, Any], tiny_bert: Path, tmp_path: Path, model: RewardModel
) -> None:
    if options.get("target_modules") == "all-linear":
        options = options | {"exclude_modules": ["classifier", "pooler.dense"]}
    expected = trained_elsewhere(tiny_bert, tmp_path / "theirs", **options)
    adapter = import_peft(tmp_path / "theirs", linear_shapes(model), base_prefixes=("encoder.",))
    got = run_row(model, [(adapter, 1.0)], lambda: model.encoder(torch.arange(8)[None]).last_hidden_state)
    assert float((got - expected).abs().max()) < 1e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_module_that_peft_saved_whole_is_imported_with_its_lora(tiny_bert: Path, tmp_path: Path) -> None:
    trained_elsewhere(tiny_bert, tmp_path / "theirs", modules_to_save=["classifier"])
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1)
    adapter = import_peft(tmp_path / "theirs", linear_shapes(base))
    assert adapter.spec.modules_to_save == ("classifier",)
    assert adapter.saved["classifier"].bias_O is not None
    assert len(adapter.pairs) == 4


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning")
@pytest.mark.parametrize("initial", ["pissa", "olora"])
def test_a_training_that_changed_the_model_itself_is_taken_only_once_peft_has_made_a_plain_lora_of_it(
    initial: str, model: RewardModel, tiny_bert: Path, tmp_path: Path
) -> None:
    """PEFT takes what such a training begins with out of the model's own weights, also whenever it loads the result."""
    torch.manual_seed(0)
    tuned = get_peft_model(
        reward_model(tiny_bert), LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=initial)
    )
    before = tmp_path / "before"
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(before)
    tuned.peft_config["default"].init_lora_weights = initial
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = scores_of(tuned)
    tuned.save_pretrained(tmp_path / "as it is")
    with pytest.raises(CorruptArtifactError, match="may change the model's own weights") as caught:
        import_peft(tmp_path / "as it is", linear_shapes(model))
    assert "path_initial_model_for_weight_conversion" in caught.value.mend
    tuned.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(before))
    plain = import_peft(tmp_path / "plain", linear_shapes(model))
    assert float((with_adapter(model, plain) - expected).abs().max()) < 1e-5
    assert float((scores_of(model) - expected).abs().max()) > 1e-4


def edited(model: RewardModel, folder: Path, **changes: Any) -> Path:
    export_peft(random_adapter(model, {QUERY: 4, VALUE: 4}), folder, linear_shapes(model))
    config = json.loads((folder / CONFIG_FILE).read_text()) | changes
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_dora": True}, "use_dora: DoRA"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "IA3"}, "type 'IA3', not LORA"),
        ({"peft_type": None}, "type None, not LORA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_new": 3}, "says 'something_new'"),
        ({"r": 5}, r"lora_A\.weight' has the shape \[4, 32\], expected is \[5, 32\]"),
        ({"r": True}, "rank True"),
        ({"r": 0}, "rank 0"),
        ({"r": 100_000}, "rank 100000"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"alpha_pattern": {QUERY: -(10**400)}}, f"{QUERY} is -1000"),
        ({"r": 10**400}, "rank 1000"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": {"(a+)+$": 3}}, "only names of layers"),
        ({"alpha_pattern": {r"layer.\d.query": 3}}, "only names of layers"),
        ({"alpha_pattern": {f"layer{n}": 3 for n in range(1001)}}, "no table of at most 1000"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' is not supported"),
        ({"init_lora_weights": "of next year"}, "init_lora_weights 'of next year'"),
        ({"rank_pattern": [3]}, "rank_pattern is no table"),
        ({"target_modules": [QUERY, VALUE, "nowhere"]}, "names 'nowhere', for which there are no weights"),
        ({"target_modules": [3]}, "target_modules is no list"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_with_its_field(
    changes: dict[str, Any], word: str, model: RewardModel, tmp_path: Path
) -> None:
    with pytest.raises(CorruptArtifactError, match=word):
        import_peft(edited(model, tmp_path / "out", **changes), linear_shapes(model))


def test_nothing_that_the_config_names_is_followed_or_run(model: RewardModel, tmp_path: Path) -> None:
    named = {
        "base_model_name_or_path": "/etc/passwd",
        "revision": "http://localhost:1/",
        "auto_mapping": {"base_model_class": "system", "parent_library": "os"},
    }
    adapter = import_peft(edited(model, tmp_path / "out", **named), linear_shapes(model))
    assert set(adapter.pairs) == {QUERY, VALUE}


def test_a_pickle_is_refused_without_being_opened(model: RewardModel, tmp_path: Path) -> None:
    folder = edited(model, tmp_path / "out")
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidInputError, match="pickle"):
        import_peft(folder, linear_shapes(model))


def test_a_link_to_another_file_is_not_followed(model: RewardModel, tmp_path: Path) -> None:
    folder = edited(model, tmp_path / "out")
    (folder / WEIGHTS_FILE).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptArtifactError, match="has no file adapter_model"):
        import_peft(folder, linear_shapes(model))


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_that_is_not_whole_is_refused(missing: str, model: RewardModel, tmp_path: Path) -> None:
    folder = edited(model, tmp_path / "out")
    (folder / missing).unlink()
    with pytest.raises(CorruptArtifactError, match=f"no file {missing}"):
        import_peft(folder, linear_shapes(model))


def test_an_adapter_of_another_base_is_refused_by_the_layer_it_names(model: RewardModel, tmp_path: Path) -> None:
    folder = edited(model, tmp_path / "out")
    others = {name: shape for name, shape in linear_shapes(model).items() if name != VALUE}
    with pytest.raises(CorruptArtifactError, match=f"'{VALUE}' matches no linear layer"):
        import_peft(folder, others)


def test_an_export_never_overwrites(model: RewardModel, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        export_peft(random_adapter(model, {QUERY: 4}), tmp_path, linear_shapes(model))


def test_an_export_that_peft_would_apply_to_more_layers_is_refused(model: RewardModel, tmp_path: Path) -> None:
    shapes = linear_shapes(model)
    with pytest.raises(InvalidInputError, match=r"'score' for 'other\.score'"):
        export_peft(random_adapter(model, {"score": 2}), tmp_path / "out", {**shapes, "other.score": shapes["score"]})


def test_the_first_pattern_that_fits_wins_as_in_peft() -> None:
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": {"a.query": 2, "query": 3, "^b": 4}, "alpha_pattern": {}}
    read = read_config(json.dumps(config).encode())
    assert [read.rank_of(name) for name in ("x.a.query", "query", "x.yquery", "b", "x.b")] == [2, 3, 1, 4, 1]


@given(
    st.from_regex(r"\^?([ab_]|\\?\.){1,5}", fullmatch=True, alphabet="ab_.^\\"),
    st.text(alphabet="ab_.", min_size=1, max_size=7),
)
@settings(max_examples=500)
@example("b.a", "x.bxa")
@example(r"b\.a", "bxa")
@example("^b", "a.b")
def test_a_pattern_fits_what_it_fits_in_peft(pattern: str, layer: str) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {pattern: 2}}
    fits = get_pattern_key([pattern], layer) == pattern  # the layer itself where it does not
    assert read_config(json.dumps(config).encode()).alpha_of(layer) == (2 if fits else 1)


def test_a_spec_of_replaced_layers_alone_exports_and_loads(tiny_bert: Path, tmp_path: Path) -> None:
    adapter = random_adapter(reward_model(tiny_bert), {}, saved=("score",))
    assert adapter.spec == LoraSpec({}, {}, False, ("score",))
    assert len(NAMES) + 32 == adapter.saved["score"].weight_O_I.shape[1]
    export_peft(adapter, tmp_path / "out", linear_shapes(reward_model(tiny_bert)))
    again = import_peft(tmp_path / "out", linear_shapes(reward_model(tiny_bert)))
    assert torch.equal(again.saved["score"].weight_O_I, adapter.saved["score"].weight_O_I)
