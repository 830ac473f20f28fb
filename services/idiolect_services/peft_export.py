"""A person's adapter as an ordinary PEFT LoRA, for whoever wants to take it elsewhere. Made in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from idiolect.errors import CorruptArtifactError
from idiolect.registry.signing import Signer
from idiolect.registry.weights import verify_version
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.lora.peft_format import head_adapter, peft_files
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LinearShape, linear_shapes
from idiolect_adapters.preference import PreferenceModel
from idiolect_services.exports import PeftFiles


def peft_of(model: PreferenceModel, signer: Signer) -> PeftFiles:
    """For versions of `model`, verified first; of any other one there are no files."""

    @cache
    def shapes() -> Mapping[str, LinearShape]:
        return linear_shapes(RewardModel.of(model))

    def files(stored: StoredVersion) -> Mapping[str, bytes] | None:
        template = stored.template
        if (template.global_digest, template.basis_digest) != (model.digest, model.user_basis_digest):
            return None
        try:
            (weights_1_K,) = verify_version(template, stored.version, signer).values()
        except CorruptArtifactError:
            return None
        return peft_files(head_adapter(model.head.user_basis_K_F, weights_1_K[0], template.alpha), shapes())

    return files
