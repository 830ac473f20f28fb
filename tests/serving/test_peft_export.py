"""The adapter of an export in PEFT's format."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from serving_world import World, signed_version, template_for

from idiolect.stores.ports import StoredVersion
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_adapters.preference import PreferenceModel
from idiolect_services.peft_export import peft_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreferenceModel:
    return random_model(tmp_path_factory.mktemp("models"))


def stored(world: World, model: PreferenceModel) -> StoredVersion:
    template = template_for("acme", "user", model, world.clock)  # type: ignore[arg-type]
    rank = model.user_rank
    template = replace(template, rank=rank, alpha=2.0 * rank, tensors=(replace(template.tensors[0], shape=(1, rank)),))
    values = np.linspace(-1, 1, rank).tolist()
    return StoredVersion(template, signed_version(template, world.signer, values, subject="p"), revoked=False)


def test_it_is_a_lora_on_the_score_layer_in_the_shared_basis(world: World, model: PreferenceModel) -> None:
    files = peft_of(model, world.signer)(stored(world, model))
    assert files is not None
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(files["adapter_config.json"])
    assert (config["peft_type"], config["target_modules"]) == ("LORA", ["score"])
    assert (config["r"], config["lora_alpha"]) == (model.user_rank, 2 * model.user_rank)
    tensors = {
        name.rsplit(".", 2)[1]: value
        for name, value in safetensors.numpy.load(files["adapter_model.safetensors"]).items()
    }
    assert np.array_equal(tensors["lora_A"], model.head.user_basis_K_F)
    assert np.array_equal(tensors["lora_B"][0], np.linspace(-1, 1, model.user_rank).astype(np.float32))


def test_an_adapter_of_another_model_or_with_a_bad_signature_has_no_files(world: World, model: PreferenceModel) -> None:
    files, good = peft_of(model, world.signer), stored(world, model)
    assert files(replace(good, template=replace(good.template, global_digest="f" * 64))) is None
    assert files(replace(good, version=replace(good.version, signature=b"x" * 64))) is None
