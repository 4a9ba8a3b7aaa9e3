"""What heads and guard cost llama-server: a model with heads beside the same one without, request by request."""

import json
import random
import statistics
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llama_so8t import upstream
from llama_so8t.benchmarks.paired import paired_ratio
from llama_so8t.checkpoint.gguf_heads import unfitted_heads
from llama_so8t.errors import So8tError
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.format import THRESHOLD, Keys, unfitted_warning
from llama_so8t.server_process import LlamaServer
from llama_so8t.tools import program

BARE = "no heads"
"""The arm with the file without heads, which the others are compared with."""

POLICIES = ("off", "monitor", "enforce")
"""The other arms: the file with heads, under a policy."""


@dataclass(frozen=True)
class Timing:
    """One request, by the server's clock: ms until the first token, ms per token after it."""

    first_ms: float
    token_ms: float


@dataclass(frozen=True)
class GuardOptions:
    """What `so8t bench guard` was asked for.

    ``model``: GGUF file with heads. ``directory``: where a copy without heads is written. ``n_prompt``: random tokens
    in a prompt. ``n_predict``: tokens of an answer. ``rounds``: requests to each arm; one more, the first, does not
    count. ``threads``: of each server. ``policies``: some of `POLICIES`; each is a server of its own, all at once in
    memory.
    """

    model: Path
    directory: Path = Path("build/bench")
    n_prompt: int = 128
    n_predict: int = 64
    rounds: int = 30
    threads: int = 2
    policies: tuple[str, ...] = POLICIES

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
            So8tError: no such policy, or none.
        """
        if not self.policies or not set(self.policies) <= set(POLICIES):
            raise So8tError(f"--policies: found {','.join(self.policies)!r}, expected some of {','.join(POLICIES)}")


def measure_guard(options: GuardOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Sends the same requests in turns to one server per arm, and compares each with the one without heads.

    Args:
        options: model, requests and arms.
        report: receives one line after each round.

    Returns:
        The options; ``medians`` per arm in ms; and ``ratios``, per arm and quantity the median of the paired ratios
        (arm / no heads) with a 95 % bootstrap interval.

    Raises:
        So8tError: no such policy, no heads in the model, or a server fails.
    """
    options.check()
    timings = _timings(options, report)
    return {
        "model": options.model.name,
        "threads": options.threads,
        "n_prompt": options.n_prompt,
        "n_predict": options.n_predict,
        "rounds": options.rounds,
        "medians": {arm: {key: statistics.median(column) for key, column in timings[arm].items()} for arm in timings},
        "ratios": {
            arm: {key: asdict(paired_ratio(column, timings[BARE][key])) for key, column in timings[arm].items()}
            for arm in options.policies
        },
    }


def _timings(options: GuardOptions, report: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    """Arm -> field of `Timing` -> one value per round."""
    arms = (BARE, *options.policies)
    file = read_gguf(options.model)
    if unfitted := unfitted_heads(file):
        report(unfitted_warning(unfitted))
    vocabulary = len(file.metadata["tokenizer.ggml.tokens"].value)
    found: dict[str, list[Timing]] = {arm: [] for arm in arms}
    draw = random.Random(0)
    with _servers(options) as urls:
        for turn in range(options.rounds + 1):
            prompt = [draw.randrange(vocabulary // 2) for _ in range(options.n_prompt)]
            for arm in draw.sample(arms, len(arms)):
                timing = _complete(urls[arm], prompt, options.n_predict)
                if turn > 0:
                    found[arm].append(timing)
            if turn > 0:
                last = found[arms[-1]][-1].token_ms
                report(f"round {turn}/{options.rounds}: {last:.2f} ms per token under {arms[-1]}")
    return {
        arm: {field.name: [getattr(timing, field.name) for timing in of_arm] for field in fields(Timing)}
        for arm, of_arm in found.items()
    }


@contextmanager
def _servers(options: GuardOptions) -> Iterator[dict[str, str]]:
    """Arm -> URL of its server; all run at once."""
    options.directory.mkdir(parents=True, exist_ok=True)
    bare = without_heads(options.model, options.directory / f"{options.model.stem}-no-heads.gguf")
    n_ctx = options.n_prompt + options.n_predict + 8
    with ExitStack() as stack:
        urls = {BARE: stack.enter_context(_server(bare, n_ctx, options.threads, [])).url}
        for policy in options.policies:
            flags = ["--so8t-policy", policy, "--so8t-threshold", _never(options.model)]
            urls[policy] = stack.enter_context(_server(options.model, n_ctx, options.threads, flags)).url
        yield urls


def without_heads(model: Path, out: Path) -> Path:
    """Writes ``model`` to ``out`` without its heads, all else byte for byte.

    Raises:
        So8tError: it has no heads.
    """
    file = read_gguf(model)
    if Keys.HEADS not in file.metadata:
        raise So8tError(f"{model}: found no heads (key so8t.heads), expected a model with heads")
    writer = upstream.gguf.GGUFWriter(out, arch=str(file.get("general.architecture")))
    keys = {
        key: value.for_writer()
        for key, value in file.metadata.items()
        if not key.startswith((Keys.HEADS, Keys.HEAD_PREFIX)) and not value.is_empty_array
    }
    upstream.put_keys(writer, keys)
    for tensor in upstream.gguf.GGUFReader(model).tensors:
        if not tensor.name.startswith(("so8t_head.", "so8t_stem.")):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _never(model: Path) -> str:
    """Thresholds that nothing reaches, so that every arm writes the same tokens."""
    file = read_gguf(model)
    return ",".join(
        f"{head}/{label}=1"
        for head in file.get(Keys.HEADS)
        if file.get(Keys.HEAD_RULE.format(name=head), THRESHOLD) == THRESHOLD
        for label in file.get(Keys.HEAD_LABELS.format(name=head))
    )


def _server(model: Path, n_ctx: int, threads: int, flags: list[str]) -> LlamaServer:
    return LlamaServer(
        program("llama-server"), "-m", model, "-c", n_ctx, "-np", 1, "-t", threads, "-tb", threads,
        "--cache-ram", 0, *flags,
    )  # fmt: skip


def _complete(url: str, prompt: list[int], n_predict: int) -> Timing:
    body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        timings = json.load(reply)["timings"]
    if timings["predicted_n"] != n_predict:
        raise So8tError(f"{url}: found {timings['predicted_n']} tokens, expected {n_predict}")
    return Timing(timings["prompt_ms"], timings["predicted_per_token_ms"])
