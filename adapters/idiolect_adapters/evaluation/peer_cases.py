"""Work for peers that need an environment of their own: a model and rows in a folder, and the scores they must give.

Whoever runs the peer compares its scores with these first, so that none is fast because it does something else.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from idiolect.errors import IdiolectError
from idiolect_adapters.backbone import Backbone, Tokens
from idiolect_adapters.evaluation.engine_cases import AGREE, QUERY_VALUE, Sizes, random_lora, tiny_llama
from idiolect_adapters.evaluation.random_model import character_tokenizer
from idiolect_adapters.lora.peft_format import export_peft
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LoraAdapter, LoraSpec, SavedLinear, linear_shapes
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied
from idiolect_adapters.runtime.batched.scores import score_rows
from idiolect_adapters.surface import NAMES

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
QUERY = "how do i get this done"


def threads() -> int:
    """A peer gets as many as we use."""
    return torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class PeerCase:
    """`scores`: what the peer must give for the rows in its folder."""

    rows: int
    ours: Callable[[], object]
    scores: Sequence[float]

    def check_agrees(self, scores: Sequence[float], peer: str) -> None:
        difference = float((torch.tensor(self.scores) - torch.tensor(scores)).abs().max())
        if not difference < AGREE * max(1.0, max(map(abs, self.scores))):
            raise IdiolectError(f"{peer} and Idiolect differ by {difference:.3g}: they do not do the same.")


def decoder_case(folder: Path, sizes: Sizes) -> PeerCase:
    """A reward model on a small decoder, every row with a LoRA on queries and values and a head of its own."""
    rows, tokens = sizes.batches[0]
    bare = tiny_llama(sizes)
    peer = _classifier(bare)
    targets = [name for name in linear_shapes(peer) if name.rpartition(".")[2] in QUERY_VALUE]
    adapters = [_with_head(random_lora(peer, targets, seed), bare.config.hidden_size, seed) for seed in range(rows)]
    draw = random.Random(0)  # noqa: S311
    ids = tuple(tuple(draw.randrange(3, bare.config.vocab_size) for _ in range(tokens)) for _ in range(rows))
    chosen = draw.sample(range(rows), rows)

    peer.save_pretrained(folder / "model", safe_serialization=True)
    character_tokenizer().save_pretrained(folder / "model")
    for number, adapter in enumerate(adapters):
        export_peft(adapter, folder / "adapters" / str(number), linear_shapes(peer))
    _write_rows(folder, {"ids": ids, "adapters": chosen})

    model = RewardModel(
        Backbone(bare, character_tokenizer()),
        torch.zeros(bare.config.hidden_size + len(NAMES)),
        _padded(peer.score.weight.detach())[0],
    )
    runtime = BatchedRuntime(model)
    handles = [runtime.residents.add(_for_reward_model(adapter)) for adapter in adapters]
    stacks = [[Applied(handles[number])] for number in chosen]
    beside_N_S = torch.zeros(rows, len(NAMES))

    def ours() -> torch.Tensor:
        return score_rows(runtime, model, Tokens(ids), beside_N_S, stacks)

    return PeerCase(rows, ours, ours().tolist())


def _classifier(decoder: Any) -> Any:
    """The same decoder, in the form that a peer loads: one label, read at the last token."""
    decoder.config.num_labels, decoder.config.pad_token_id = 1, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = LlamaForSequenceClassification(decoder.config).eval()
    made.model.load_state_dict(decoder.state_dict())
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(1))
    return made


def _with_head(adapter: LoraAdapter, hidden: int, seed: int) -> LoraAdapter:
    head = SavedLinear(torch.randn(1, hidden, generator=torch.Generator().manual_seed(1000 + seed)), None)
    spec = LoraSpec(adapter.spec.rank_pattern, adapter.spec.alpha_pattern, modules_to_save=("score",))
    return LoraAdapter(spec, adapter.pairs, {"score": head})


def _for_reward_model(adapter: LoraAdapter) -> LoraAdapter:
    """As it is named there; what the counts in a text would add is zero."""

    def renamed(layers: Any) -> Any:
        return {f"encoder.{name.removeprefix('model.')}": value for name, value in layers.items()}

    spec = LoraSpec(renamed(adapter.spec.rank_pattern), renamed(adapter.spec.alpha_pattern), modules_to_save=("score",))
    saved = {"score": SavedLinear(_padded(adapter.saved["score"].weight_O_I), None)}
    return LoraAdapter(spec, renamed(adapter.pairs), saved)


def _padded(weight_1_H: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(weight_1_H, (0, len(NAMES)))


def encoder_case(backbone: Path, folder: Path, sizes: Sizes) -> PeerCase:
    """A reranker on the backbone's own weights, and texts of mixed length in the order in which they came.

    The peer's head is transformers' own, which reads the first token; that is checked against transformers. Ours is
    what the server does to get a text's features, from the text on.
    """
    loaded = Backbone.load(backbone)
    texts = _texts(loaded, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        classifier = AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=1, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        for layer in classifier.modules():  # scores far apart, so that a wrong one is noticed
            if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
                torch.nn.init.normal_(layer.weight)
    classifier.save_pretrained(folder / "model", safe_serialization=True)
    for name in TOKENIZER_FILES:
        if (backbone / name).is_file():
            shutil.copyfile(backbone / name, folder / "model" / name)
    _write_rows(folder, {"query": QUERY, "texts": texts})
    pairs = [(QUERY, text) for text in texts]
    with torch.inference_mode():
        scores = [float(classifier(**loaded.tokenizer(*pair, return_tensors="pt")).logits[0, 0]) for pair in pairs]
    return PeerCase(len(texts), lambda: loaded.features(pairs), scores)


def _texts(backbone: Backbone, sizes: Sizes) -> list[str]:
    """Words of one token each, so that a text of n words has n tokens; query and separators are counted in."""
    tokenizer = backbone.tokenizer
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 1)
    framed = len(tokenizer(QUERY, "")["input_ids"])
    draw = random.Random(0)  # noqa: S311
    lengths = [draw.randint(*sizes.lengths) for _ in range(sizes.texts)]
    return [" ".join(draw.choices(words, k=max(1, min(length, backbone.max_tokens) - framed))) for length in lengths]


def _write_rows(folder: Path, rows: dict[str, Any]) -> None:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
