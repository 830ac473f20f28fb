"""An adapter as an ordinary PEFT LoRA, for whoever wants to take it elsewhere. Made in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from idiolect.errors import CorruptArtifactError
from idiolect.registry.manifest import ReleaseTemplate
from idiolect.registry.signing import Signer
from idiolect.registry.weights import Weights, verify_version
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.lora.peft_format import head_adapter, peft_files
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LinearShape, LoraAdapter, linear_shapes
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.loras import adapter_of
from idiolect_services.exports import PeftFiles


def peft_of(model: PreferenceModel, signer: Signer) -> PeftFiles:
    """For versions of `model`, verified first; of any other one there are no files."""

    @cache
    def shapes() -> Mapping[str, LinearShape]:
        return linear_shapes(RewardModel.of(model))

    def files(stored: StoredVersion) -> Mapping[str, bytes] | None:
        if stored.template.global_digest != model.digest:
            return None
        try:
            tensors = verify_version(stored.template, stored.version, signer)
            adapter = _adapter(model, stored.template, tensors, shapes())
        except CorruptArtifactError:
            return None
        return None if adapter is None else peft_files(adapter, shapes())

    return files


def _adapter(
    model: PreferenceModel, template: ReleaseTemplate, tensors: Weights, shapes: Mapping[str, LinearShape]
) -> LoraAdapter | None:
    if template.lora is not None:
        return adapter_of(template.lora, tensors, shapes)
    bases = {
        model.user_basis_digest: model.head.user_basis_K_F,
        model.domain_basis_digest: model.head.domain_basis_M_F,
    }
    if template.basis_digest not in bases:
        return None
    (weights_1_K,) = tensors.values()
    return head_adapter(bases[template.basis_digest], weights_1_K[0], template.alpha)
