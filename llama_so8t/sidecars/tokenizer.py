"""``tokenizer_info.json``: tokens and ids, merges, special tokens of the model's own tokenizer."""

from pathlib import Path
from typing import Any

from llama_so8t.checkpoint import Vocabulary
from llama_so8t.errors import CheckpointError
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.files.json_file import read_json

SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
"""Name in the file and in tokenizer_config.json -> name in the keys of GGUF."""


def tokenizer_info(vocabulary: Vocabulary) -> dict[str, Any]:
    """Content of ``tokenizer_info.json``, from vocab.gguf, tokenizer.json or tokenizer.model, no code run.

    Returns:
        ``vocab`` token -> id, in the order of the ids; ``merges``, pairs in their order, empty where the
        tokenizer has none; ``special_tokens`` name -> token or None.

    Raises:
        CheckpointError: there is no tokenizer, or it is malformed.
    """
    if vocabulary.gguf is not None:
        return _from_gguf(read_gguf(vocabulary.gguf))
    directory = vocabulary.directory
    if directory is None:
        raise CheckpointError("the model names no tokenizer, neither a directory nor a GGUF file")
    if (directory / "tokenizer.json").is_file():
        return _from_json(directory / "tokenizer.json", directory / "tokenizer_config.json")
    if (directory / "tokenizer.model").is_file():
        return _from_sentencepiece(directory / "tokenizer.model")
    raise CheckpointError(f"{directory}: found no tokenizer.json and no tokenizer.model, expected one of them")


def _from_gguf(file: GgufFile) -> dict[str, Any]:
    tokens = file.get("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{file.path}: key tokenizer.ggml.tokens is missing, expected the tokenizer")
    special = {}
    for name, key in SPECIAL_TOKENS.items():
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and index not in range(len(tokens)):
            raise CheckpointError(f"{file.path}: found {key}_token_id {index}, expected one of {len(tokens)} tokens")
        special[name] = None if index is None else tokens[index]
    return {
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [_pair(file.path, merge) for merge in file.get("tokenizer.ggml.merges", ())],
        "special_tokens": special,
    }


def _from_json(path: Path, config_path: Path) -> dict[str, Any]:
    content = read_json(path)
    config = read_json(config_path) if config_path.is_file() else {}
    try:
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):  # Unigram: pairs of token and score
            vocab = {token: index for index, (token, _) in enumerate(vocab)}
        vocab = vocab | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
        merges = content["model"].get("merges") or []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no tokenizer: {type(error).__name__}: {error}") from None
    special = {name: config.get(name) for name in SPECIAL_TOKENS}
    return {
        "vocab": ordered,
        "merges": [_pair(path, merge) for merge in merges],
        "special_tokens": {n: t.get("content") if isinstance(t, dict) else t for n, t in special.items()},
    }


def _from_sentencepiece(path: Path) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: sentencepiece cannot read it: {error}") from None
    tokens = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    ids = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "pad_token": model.pad_id()}
    ids["unk_token"] = model.unk_id()
    return {
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [],
        "special_tokens": {name: None if ids[name] < 0 else tokens[ids[name]] for name in SPECIAL_TOKENS},
    }


def _pair(path: Path, merge: Any) -> list[str]:
    pair = merge.split(" ", 1) if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2:
        raise CheckpointError(f"{path}: found the merge {merge!r}, expected two tokens")
    return pair
