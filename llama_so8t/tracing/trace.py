"""Runs a text through a model and reads every head at every position."""

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llama_so8t.bindings import Session
from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.format import TOKEN, HeadSpec
from llama_so8t.inspection.gguf_subject import open_gguf
from llama_so8t.tracing import chat
from llama_so8t.tracing.pieces import Pieces
from llama_so8t.tracing.rule import (
    ANSWER,
    PROMPT,
    THINK,
    Span,
    Trigger,
    acting,
    aggregate,
    in_parts,
    in_scope,
    says,
    triggers,
)

CHUNK = 512
"""Tokens evaluated at once."""

_LONG = 2 * CHUNK  # below it a progress bar would only flash
_THINK_BEGIN, _THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class TraceOptions:
    """What `so8t trace` was asked for: a prompt or messages, and an answer or how many tokens to generate.

    A last message of the assistant is taken as the answer where none is given.
    """

    model: Path
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    answer: str | None = None
    n_predict: int = 64
    n_threads: int = 2
    n_gpu_layers: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Trace:
    """Tokens of prompt and answer, and probabilities of each head after each of them, ``(n, labels)``.

    Behind the prompt they are aggregated as the head says.
    """

    path: Path
    name: str
    architecture: str
    heads: tuple[HeadSpec, ...]
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    spans: tuple[Span, ...]
    probabilities: dict[str, np.ndarray]
    unfitted: frozenset[str] = frozenset()
    """Heads that were never fitted, which do not act."""
    asked: dict[str, np.ndarray] = field(default_factory=dict)
    """A head that is not asked everywhere -> positions at which it has values, ``(n,)`` bool."""

    @cached_property
    def triggers(self) -> dict[str, list[Trigger]]:
        """Head -> where it acts."""
        return {
            head.name: triggers(
                head, self.spans, self.probabilities[head.name], self.is_fitted(head), self.asked.get(head.name)
            )
            for head in self.heads
        }

    @cached_property
    def _everywhere(self) -> np.ndarray:
        return np.ones(len(self.tokens), dtype=bool)

    def has_values(self, head: HeadSpec) -> np.ndarray:
        """Positions at which the head is asked, ``(n,)`` bool."""
        return self.asked.get(head.name, self._everywhere)

    def not_finite(self, head: HeadSpec) -> np.ndarray:
        """Positions at which it is asked and its values are not finite, ``(n,)`` bool."""
        return self.has_values(head) & np.isnan(self.probabilities[head.name]).any(-1)

    def is_fitted(self, head: HeadSpec) -> bool:
        """Whether the weights of the head are not all zeros."""
        return head.name not in self.unfitted

    def can_act(self, head: HeadSpec) -> bool:
        """Whether a label of the head acts at some probability."""
        return self.is_fitted(head) and bool(acting(head))


def trace(options: TraceOptions) -> Trace:
    """Evaluates prompt and answer.

    Raises:
        CheckpointError: the file is missing, damaged, or has no heads.
        ConfigError: the text is empty or longer than the context of the model.
        RuntimeLibraryError: llama.cpp refused the file.
    """
    path = options.model
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory, expected a GGUF file; make one with `so8t convert`")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    subject = open_gguf(path)
    if not subject.heads:
        raise CheckpointError(f"{path}: found no heads, so there is nothing to trace")
    file = read_gguf(path)
    heads = tuple(head.spec for head in subject.heads)
    prompt, answer = _texts(file, options)
    n_context = file.get(f"{subject.architecture}.context_length")
    if not isinstance(n_context, int) or n_context < 1:
        raise CheckpointError(f"{path}: key {subject.architecture}.context_length is {n_context!r}, expected a size")

    n_predict = options.n_predict if answer is None else 0
    n_most = _most_tokens(prompt) + (_most_tokens(answer) if answer is not None else n_predict)
    with Session(
        path,
        n_ctx=max(min(n_context, n_most), 8),
        n_batch=CHUNK,
        n_ubatch=CHUNK,
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
    ) as session:
        prompt_ids = _without_second_bos(session.tokenize(prompt), file)
        answer_ids = session.tokenize(answer, add_special=False) if answer else []
        _check_length(path, len(prompt_ids), len(answer_ids), n_predict, n_context)
        reader = _Reader(session, heads, len(prompt_ids) + len(answer_ids) + n_predict, options.progress)
        given = prompt_ids + answer_ids
        reader.read(given[:-1])
        reader.read(given[-1:])  # alone: the logits of a whole chunk would be a large copy
        if n_predict:
            answer_ids = reader.generate(n_predict, _end_tokens(file))
        values = reader.values()

    tokens = (*prompt_ids, *answer_ids)
    texts = tuple(Pieces(file).texts(tokens))
    spans = tuple(_spans(texts, len(prompt_ids)))
    name = str(file.get("general.name") or path.stem)
    unfitted = frozenset(subject.unfitted_heads)
    probs, asked = _judged(heads, values, spans, unfitted)
    return Trace(path, name, subject.architecture, heads, tokens, texts, spans, probs, unfitted, asked)


def _judged(
    heads: tuple[HeadSpec, ...], values: dict[str, np.ndarray], spans: tuple[Span, ...], unfitted: frozenset[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Aggregated probabilities of each head, and where those are asked that depend on another."""
    probs: dict[str, np.ndarray] = {}
    asked: dict[str, np.ndarray] = {}
    by_name = {head.name: head for head in heads}
    for head in heads:
        if head.depends_on is not None:
            other = by_name[head.depends_on]
            acts = says(other, probs[other.name]) & in_scope(other, spans, len(probs[other.name]))
            asked[head.name] = acts & (other.name not in unfitted)
        if TOKEN not in head.prompt_aggregation:  # a prompt has no value at a token
            everywhere = np.ones(len(values[head.name]), dtype=bool)
            asked[head.name] = asked.get(head.name, everywhere) & ~in_parts(spans, (PROMPT,), len(everywhere))
        probs[head.name] = aggregate(head, values[head.name], spans, asked.get(head.name))
    return probs, asked


def _texts(file: GgufFile, options: TraceOptions) -> tuple[str, str | None]:
    prompt, answer = options.prompt, options.answer
    if options.messages is not None:
        messages = options.messages
        if answer is None and messages[-1]["role"] == "assistant":
            messages, answer = messages[:-1], messages[-1]["content"]
        prompt = chat.render(file, messages)
    if prompt is None:
        raise ConfigError("found neither a prompt nor messages, expected one of them")
    for name, text in (("prompt", prompt), ("answer", answer or "")):
        if "\0" in text:
            raise ConfigError(f"the {name} has a NUL character at {text.index(chr(0))}, where llama.cpp would end it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the {name} is not Unicode at character {error.start}") from None
    return prompt, answer


def _most_tokens(text: str) -> int:
    return len(text.encode()) + 8  # every token has a byte, but those that open and close the text


def _check_length(path: Path, n_prompt: int, n_answer: int, n_predict: int, n_context: int) -> None:
    if n_prompt == 0:
        raise ConfigError("the prompt has no tokens, expected one or more")
    if n_prompt + n_answer + n_predict > n_context:
        more = f" and the answer {n_answer}" if n_answer else f" and -n asks for {n_predict} more" if n_predict else ""
        raise ConfigError(f"the prompt has {n_prompt} tokens{more}, {path} has a context of {n_context}")


def _without_second_bos(tokens: list[int], file: GgufFile) -> list[int]:
    """A chat template may write the token that the tokenizer adds."""
    bos = file.get("tokenizer.ggml.bos_token_id")
    return tokens[1:] if len(tokens) > 1 and tokens[0] == tokens[1] == bos else tokens


def _end_tokens(file: GgufFile) -> set[int]:
    return {file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}


def _spans(texts: tuple[str, ...], n_prompt: int) -> list[Span]:
    """The prompt, and the answer divided at the tags of its thoughts, which belong to them.

    As in the guard (``so8t-guard.cpp``), only the beginning of an answer can be thoughts.
    """
    spans = [Span(PROMPT, 0, n_prompt)]
    thinking = "".join(texts[max(0, n_prompt - 4) : n_prompt]).rstrip().endswith(_THINK_BEGIN)
    start = n_prompt
    for index in range(n_prompt, len(texts)):
        text = texts[index].strip()
        if text == _THINK_BEGIN and not "".join(texts[n_prompt:index]).strip() and not thinking:
            spans.append(Span(ANSWER, start, index))
            start, thinking = index, True
        elif text == _THINK_END and thinking:
            spans.append(Span(THINK, start, index + 1))
            start, thinking = index + 1, False
    spans.append(Span(THINK if thinking else ANSWER, start, len(texts)))
    return [span for span in spans if span.stop > span.start]


class _Reader:
    """Decodes tokens one after the other and collects the values of the heads."""

    def __init__(self, session: Session, heads: tuple[HeadSpec, ...], n_total: int, progress: bool) -> None:
        self.session = session
        self.heads = heads
        self.n_past = 0
        self._rows: dict[str, list[np.ndarray]] = {head.name: [] for head in heads}
        self._bar = tqdm(
            total=n_total, unit="token", desc="trace", file=sys.stderr, disable=not progress or n_total < _LONG
        )

    def read(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), CHUNK):
            self._decode(tokens[start : start + CHUNK])

    def generate(self, n: int, ends: set[int]) -> list[int]:
        """Greedy continuation, without the token that ends it."""
        generated: list[int] = []
        while len(generated) < n:
            token = int(self.session.logits()[-1].argmax())
            if token in ends:
                break
            generated.append(token)
            self._decode([token])
        return generated

    def values(self) -> dict[str, np.ndarray]:
        """Logits of each head at every token, ``(n, labels)``."""
        self._bar.close()
        return {name: np.concatenate(rows) for name, rows in self._rows.items()}

    def _decode(self, tokens: list[int]) -> None:
        self.session.decode(tokens, position=self.n_past)
        self.n_past += len(tokens)
        self._bar.update(len(tokens))
        for head in self.heads:
            self._rows[head.name].append(np.array(self.session.head_logits(head.name)))
