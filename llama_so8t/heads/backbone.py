"""The decoder of a checkpoint on PyTorch: token ids in, final-norm hidden states out."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_so8t.checkpoint import Checkpoint, adapter, open_checkpoint
from llama_so8t.errors import CheckpointError
from llama_so8t.heads.tokenization import ChatTokenizer

if TYPE_CHECKING:
    import torch

MAX_BATCH_TOKENS = 2048
"""Tokens of one forward pass: large enough for matrix products, small enough for a laptop's memory."""


class Backbone:
    """Hidden states ``f = RMSNorm(x)`` after the last layer, in float32.

    A compensated model computes what its base does, rotations undone by the weights, so the base itself
    runs: without rotations, faster, and from the weights that `so8t convert` starts from. Other models run on
    the reference implementation with their rotations.

    Args:
        path: checkpoint or adapter directory.
        base: for an adapter, the base to use instead of the one that it names.
    """

    def __init__(self, path: Path, base: str | None = None) -> None:
        self.checkpoint = open_checkpoint(path, base)
        if not self.checkpoint.is_so8t:
            raise CheckpointError(f"{path}: is a base model, expected an SO8T model; make one with `so8t init`")
        self._source = self.checkpoint
        fields = adapter.read_fields(path) if (path / adapter.CONFIG_NAME).is_file() else None
        if fields is not None:
            base_path = adapter.find_base(path, fields, base)
            self._weights = adapter.weights_sha256(base_path)
            if fields.get("so8t_compensated"):
                self._source = open_checkpoint(base_path)
        else:
            self._weights = _tensor_digest(self.checkpoint, self.checkpoint.spec.generator_shapes())
            self._weights += adapter.weights_sha256(path)
        self._model: torch.nn.Module | None = None

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        """Tokenizer with the chat template of the model."""
        return ChatTokenizer(self.checkpoint.vocabulary)

    @property
    def digest(self) -> str:
        """Identifies everything that the hidden states depend on: weights, rotations and their configuration."""
        sha256 = hashlib.sha256(self._weights.encode())
        if self._source.is_so8t:
            sha256.update(_tensor_digest(self._source, self._source.spec.generator_shapes()).encode())
            sha256.update(
                repr((self._source.spec.head_representation, self._source.spec.head_kv_representation)).encode()
            )
        return sha256.hexdigest()

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Runs all sequences, similar lengths together.

        Args:
            sequences: token ids. What all begin with is computed once.

        Yields:
            Index of a sequence and its hidden states ``(tokens, d)`` float32; without those of the common
            beginning, which is at least one token shorter than the shortest sequence.
        """
        import torch

        model = self._load()
        prefix = common_prefix(sequences)
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        with torch.inference_mode():
            start = model(input_ids=torch.tensor([sequences[0][:prefix]]), use_cache=True) if prefix else None
            while order:
                # the longest go first: if memory is short, it shows at once
                batch = order[-max(1, MAX_BATCH_TOKENS // (len(sequences[order[-1]]) - prefix)) :]
                del order[-len(batch) :]
                yield from zip(batch, self._run([sequences[i] for i in batch], prefix, start), strict=True)

    def _run(self, sequences: list[Sequence[int]], prefix: int, start: Any) -> Iterator[np.ndarray]:
        import copy

        import torch

        longest = max(len(ids) for ids in sequences)
        ids = torch.zeros((len(sequences), longest - prefix), dtype=torch.long)
        mask = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence) - prefix] = torch.tensor(sequence[prefix:])
            mask[row, : len(sequence)] = 1
        cache = None
        if start is not None:
            cache = copy.deepcopy(start.past_key_values)
            cache.batch_repeat_interleave(len(sequences))
        states = self._load()(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        for row, sequence in enumerate(sequences):
            yield states[row, : len(sequence) - prefix].numpy()

    def _load(self) -> "torch.nn.Module":
        if self._model is None:
            self._model = _build(self._source)
        return self._model


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of first tokens that all sequences share, less than the length of the shortest."""
    first = sequences[0]
    limit = min(len(ids) for ids in sequences) - 1
    for at in range(limit):
        if any(ids[at] != first[at] for ids in sequences):
            return at
    return limit


def _build(checkpoint: Checkpoint) -> "torch.nn.Module":
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    if checkpoint.is_so8t:
        from llama_so8t.hf import SO8TTransformerConfig, SO8TTransformerModel

        with no_init_weights():
            model = SO8TTransformerModel(SO8TTransformerConfig(**checkpoint.config))
    else:
        with no_init_weights():
            model = AutoModel.from_config(AutoConfig.for_model(**checkpoint.config))
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(checkpoint.load(f"model.{name}"))))
    return model


def _tensor_digest(checkpoint: Checkpoint, names: Sequence[str] | dict) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(names):
        sha256.update(name.encode())
        sha256.update(np.ascontiguousarray(checkpoint.load(name)).tobytes())
    return sha256.hexdigest()
