"""A small installation with a real encoder, and LoRAs for it as plain PEFT makes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from serving_world import DOCUMENTS, Api, K, M, World

from idiolect.settings import Settings
from idiolect_adapters.lora.peft_format import import_peft
from idiolect_adapters.lora.reward_model import RewardModel, beside_of
from idiolect_adapters.lora.spec import LoraAdapter
from idiolect_adapters.preference import PreferenceModel, beside_features, project_features
from idiolect_adapters.runtime.batched.reference import run_row
from idiolect_adapters.runtime.loras import LoraEngine
from idiolect_services.peft_export import peft_of
from lora_samples import preference_model

PAIRS = [("q", document) for document in DOCUMENTS]


def fresh(backbone: Path) -> PreferenceModel:
    """The model that is served, of its own: PEFT changes the modules that it is given."""
    return preference_model(backbone, user_rank=K, domain_rank=M)


@contextmanager
def served_by(root: Path, backbone: Path, **settings: Any) -> Iterator[World]:
    model = fresh(backbone)
    world = World(root, Settings(home=root, **settings), model=model, engine=LoraEngine(model))  # type: ignore[arg-type]
    world.app = world.make_app(peft=peft_of(model, world.signer))
    try:
        yield world
    finally:
        world.close()


def trained_elsewhere(backbone: Path, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """What plain PEFT saves of a LoRA with random weights."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = get_peft_model(RewardModel.of(fresh(backbone)), LoraConfig(**options))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    return folder


@torch.inference_mode()
def plain_peft_scores(backbone: Path, folder: Path) -> list[float]:
    model = fresh(backbone)
    ids, beside = model.backbone.tokenize(PAIRS).ids, beside_of(model, PAIRS)
    found: list[float] = PeftModel.from_pretrained(RewardModel.of(model), folder)(ids, beside).tolist()
    return found


def read(world: World, folder: Path) -> LoraAdapter:
    return import_peft(folder, world.engine.shapes)


def rows_under(backbone: Path, stack: Sequence[tuple[LoraAdapter, float]]) -> np.ndarray:
    """Features of PAIRS with the score under `stack`, one row and one adapter at a time."""
    model = fresh(backbone)
    reward = RewardModel.of(model)
    rows = []
    for pair in PAIRS:
        ids = model.backbone.tokenize([pair]).ids
        beside = beside_features(model.backbone.features([pair]), [pair], model.head.kernel)
        pooled = run_row(reward, stack, lambda ids=ids: model.backbone.pooled(ids)).numpy()  # type: ignore[misc]
        features = np.concatenate([pooled, beside], axis=1)
        row = project_features(features, model.head)[0]
        centred = torch.from_numpy(features - model.head.mean_F)
        bare, moved = (run_row(reward, some, lambda c=centred: reward.score(c)) for some in ((), stack))  # type: ignore[misc]
        row[0] += float(moved - bare)
        rows.append(row)
    return np.stack(rows)


def upload_body(world: World, folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "global": world.model.digest,
        "adapter_config": json.loads((folder / "adapter_config.json").read_text()),
        "weights": base64.b64encode((folder / "adapter_model.safetensors").read_bytes()).decode(),
        "reason": "a test",
        **fields,
    }


def upload(world: World, api: Api, folder: Path, **fields: Any) -> dict[str, Any]:
    response = api.post("/v1/adapters", upload_body(world, folder, **fields))
    assert response.status_code == 201, response.text
    return dict(response.json())
