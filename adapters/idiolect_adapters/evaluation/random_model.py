"""A tiny, untrained global model: what a benchmark or a check needs where the model's quality does not matter."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import Head, PreferenceModel, Recipes, save_model
from idiolect_adapters.surface import NAMES
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import EPSILONS, UserRecipes

HIDDEN, LAYERS, MAX_TOKENS = 32, 2, 128
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def random_backbone(seed: int = 0) -> Backbone:
    """A BERT of two narrow layers with random weights, and a tokenizer that knows single characters."""
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = BertModel(
            BertConfig(
                vocab_size=len(_vocabulary()),
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                intermediate_size=2 * HIDDEN,
                max_position_embeddings=MAX_TOKENS,
            )
        )
    return Backbone(encoder.eval(), character_tokenizer())


def random_model(
    root: Path, *, seed: int = 0, user_rank: int = 12, domain_rank: int = 16, backbone: Backbone | None = None
) -> PreferenceModel:
    """A complete model under `root`, of the ranks that real ones have. With a real `backbone` it also costs what they
    cost."""
    backbone = backbone or random_backbone(seed)
    rng = np.random.default_rng(seed)
    features = backbone.hidden_size + len(NAMES)

    def draw(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal(shape).astype(np.float32)

    head = Head(draw(features), draw(features), draw(user_rank, features), draw(domain_rank, features))
    recipe = Recipe(clip_norm=1.0, prior=1.0, steps=2, curvature_K_K=np.eye(user_rank))
    user = UserRecipes(dict.fromkeys((None, *EPSILONS), recipe), np.eye(user_rank))
    domain = Recipe(clip_norm=1.0, prior=1.0, steps=2, curvature_K_K=np.eye(domain_rank))
    return save_model(root, backbone, head, Recipes(user, domain), temperature=1.0, training={"what": "nothing"})


def _vocabulary() -> dict[str, int]:
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = (*SPECIAL, *characters, *(f"##{character}" for character in characters))
    return {token: index for index, token in enumerate(tokens)}


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = _vocabulary()
    pad, unknown, start, separator = SPECIAL
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing((separator, vocabulary[separator]), (start, vocabulary[start]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, cls_token=start, sep_token=separator
    )
