"""Token ids of chat prompts and answers, the same ids that llama.cpp makes from the same model."""

from typing import TYPE_CHECKING, Any

from llama_so8t.checkpoint import Vocabulary
from llama_so8t.errors import CheckpointError
from llama_so8t.files.gguf_file import GgufFile, read_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Regular expressions of llama_vocab in src/llama-vocab.cpp, by tokenizer.ggml.pre. transformers' own GGUF reader
# is not used: it takes GPT-2's expression for every model.
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRETOKENIZERS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_LLAMA3 % "1",),
    "llama-bpe": (_LLAMA3 % "1,3",),
}
_CONTROL, _USER_DEFINED = 3, 4


class ChatTokenizer:
    """Renders the model's own chat template and tokenizes.

    Args:
        vocabulary: of the checkpoint.

    Raises:
        CheckpointError: no chat template, or a kind of tokenizer that is not known here.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.gguf is not None:
            self._tokenizer, self._add_bos = _from_gguf(read_gguf(vocabulary.gguf))
        else:
            from transformers import AutoTokenizer

            self._tokenizer, self._add_bos = AutoTokenizer.from_pretrained(str(vocabulary.directory)), False
        if not self._tokenizer.chat_template:
            where = vocabulary.gguf or vocabulary.directory
            raise CheckpointError(f"{where}: has no chat template, which the heads need to place the prompt")

    def prompt(self, text: str) -> list[int]:
        """Ids of one user turn up to where the answer begins, generation prompt included."""
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        ids = self._tokenizer.encode(rendered, add_special_tokens=False)
        bos = self._tokenizer.bos_token_id
        return [bos, *ids] if self._add_bos and ids[:1] != [bos] else ids

    def answer(self, text: str) -> list[int]:
        """Ids of an answer that follows a prompt."""
        return self._tokenizer.encode(text, add_special_tokens=False)


def _from_gguf(file: GgufFile) -> tuple["PreTrainedTokenizerBase", bool]:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, pre = _string(file, "tokenizer.ggml.model"), _string(file, "tokenizer.ggml.pre")
    if model != "gpt2" or pre not in PRETOKENIZERS:
        raise CheckpointError(
            f"{file.path}: found tokenizer {model!r} with pre-tokenizer {pre!r}, known are gpt2 with "
            f"{', '.join(PRETOKENIZERS)}; use the Hugging Face directory of the model as base"
        )
    tokens, types = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRETOKENIZERS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    bos, eos = (file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[bos] if bos is not None else None,
        eos_token=tokens[eos] if eos is not None else None,
        chat_template=file.get("tokenizer.chat_template"),
    )
    return fast, bool(file.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"))


def _string(file: GgufFile, key: str) -> str:
    value = file.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"{file.path}: key {key} is missing, expected the kind of tokenizer")
    return value
