"""The text of every token of a GGUF vocabulary."""

import codecs
from collections.abc import Iterable, Iterator

from llama_so8t.files.gguf_file import GgufFile

_NORMAL, _BYTE = 1, 6  # tokenizer.ggml.token_type; the others stand for their own text


class Pieces:
    """Token ids to text.

    Args:
        file: a model; without a vocabulary every text is empty.
    """

    def __init__(self, file: GgufFile) -> None:
        tokens = file.metadata.get("tokenizer.ggml.tokens")
        self._tokens: list[bytes] = tokens.value if tokens is not None else []
        self._types: list[int] = file.get("tokenizer.ggml.token_type", [])
        self._byte_of = _byte_of_character() if file.get("tokenizer.ggml.model") == "gpt2" else None

    def piece(self, token: int) -> bytes:
        """Bytes of one token; special tokens as they are written."""
        if not 0 <= token < len(self._tokens):
            return b""
        raw = self._tokens[token]
        kind = self._types[token] if token < len(self._types) else _NORMAL
        if kind == _BYTE:  # <0x0A>
            try:
                return bytes([int(raw[3:5], 16)])
            except ValueError:
                return raw
        if kind != _NORMAL:
            return raw
        if self._byte_of is None:
            return raw.replace("▁".encode(), b" ")
        text = raw.decode("utf-8", "replace")
        return b"".join(bytes([self._byte_of[c]]) if c in self._byte_of else c.encode() for c in text)

    def texts(self, tokens: Iterable[int]) -> Iterator[str]:
        """A text for each token; a character whose bytes lie in several tokens belongs to the last of them.

        Joined they are the whole text, up to an unfinished character at the end.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(self.piece(token))


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
