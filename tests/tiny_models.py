"""Tiny random backbones of every supported kind, made here from nothing: no download, no trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5Model,
)
from transformers.utils import logging as transformers_logging

WORDS = """alpha beta gamma delta warm cold good bad the a reply review summary question answer please thanks sorry
short long list item one two three four five six seven eight nine ten how why when what fish tree house river stone
cloud light paper glass metal wood sand rain snow wind fire earth moon star sun""".split()  # noqa: SIM905
ENCODERS = ("bert", "modernbert", "mpnet")
DECODERS = ("llama", "qwen2", "qwen3")
KINDS = ENCODERS + DECODERS
HIDDEN = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"]

_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 300,
}


def tokenizer_for(kind: str) -> PreTrainedTokenizerFast:
    """Encoders know whole words and frame texts as [CLS] a [SEP] b [SEP], MPNet with one more [SEP] before b. Decoders
    have a byte-level BPE; Llama starts texts with <s>, Qwen adds nothing, so that an empty text has no token at all.
    """
    if kind in ENCODERS:
        vocabulary = {token: index for index, token in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        if kind == "mpnet":
            tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=False)
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS], trainer)
        names = {"eos_token": "</s>"}
        if kind == "llama":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 4)]
            )
            names["bos_token"] = "<s>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **names)


def _encoder(kind: str, **changes: Any) -> torch.nn.Module:
    sizes = _SIZES | {"vocab_size": len(tokenizer_for(kind))} | changes
    heads = {"num_key_value_heads": 2}
    if kind == "bert":
        return BertModel(BertConfig(**sizes))
    if kind == "modernbert":
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        return ModernBertModel(ModernBertConfig(**sizes, **special))
    if kind == "mpnet":
        return MPNetModel(MPNetConfig(**sizes))
    special = {"pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
    if kind == "bloom":  # with other names for its sizes
        return BloomModel(BloomConfig(**sizes, **special, n_layer=sizes["num_hidden_layers"], n_head=4))
    if kind == "t5":  # a translator
        return T5Model(T5Config(**special, vocab_size=sizes["vocab_size"], d_model=HIDDEN, d_ff=48, num_layers=1))
    if kind == "llama":
        return LlamaModel(LlamaConfig(**sizes, **heads, **special))
    if kind == "qwen2":
        return Qwen2Model(Qwen2Config(**sizes, **heads, **special))
    return Qwen3Model(Qwen3Config(**sizes, **heads, head_dim=8, **special))


def save_tiny(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """A complete model folder of `kind`, as a user would point IDIOLECT_BACKBONE at."""
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _encoder(kind, **changes)
    encoder.save_pretrained(folder, safe_serialization=True)
    tokenizer_for(kind).save_pretrained(folder)
    return folder
