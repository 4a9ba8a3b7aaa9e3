"""Texts of tokens, against the decoders of tokenizers and sentencepiece."""

from pathlib import Path

from required import package
from tiny_models import tokenizer_model

from llama_so8t.files.gguf_file import GgufFile, KeyValue
from llama_so8t.tracing.pieces import Pieces

TEXT = "Zwei Drehungen, naïve: 日本語 🙂\n\ttab ▁ end"


def vocabulary(kind, tokens, types):
    values = {
        "tokenizer.ggml.model": KeyValue(kind.encode(), 8),
        "tokenizer.ggml.tokens": KeyValue([token.encode() for token in tokens], 9, 8),
        "tokenizer.ggml.token_type": KeyValue(types, 9, 5),
    }
    return Pieces(GgufFile(Path("v.gguf"), values, {}))


def test_every_byte_of_the_gpt2_alphabet():
    tokenizers = package("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == 256
    pieces = vocabulary("gpt2", alphabet, [1] * 256)
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoded = split.pre_tokenize_str(TEXT)[0][0]
    ids = [alphabet.index(character) for character in encoded]
    assert "".join(pieces.texts(ids)) == TEXT
    assert {pieces.piece(index) for index in range(256)} == {bytes([byte]) for byte in range(256)}


def test_pieces_of_a_sentencepiece_vocabulary_make_up_the_text():
    sentencepiece = package("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model())
    n = model.get_piece_size()
    types = [6 if model.is_byte(i) else 3 if model.is_control(i) else 1 for i in range(n)]
    pieces = vocabulary("llama", [model.id_to_piece(i) for i in range(n)], types)
    text = TEXT.replace("▁", "")
    normal = model.decode(model.encode(text))  # its normalizer joins spaces
    assert "".join(pieces.texts(model.encode(text))) == " " + normal


def test_a_character_belongs_to_the_token_that_completes_it():
    tokens = [f"<0x{byte:02X}>" for byte in "🙂!".encode()]
    pieces = vocabulary("llama", tokens, [6] * len(tokens))
    assert list(pieces.texts(range(5))) == ["", "", "", "🙂", "!"]
    assert list(pieces.texts([0, 4])) == ["", "\ufffd!"]


def test_special_tokens_are_shown_as_they_are_written():
    pieces = vocabulary("gpt2", ["<|im_start|>", "Ġa b▁", "Ġx"], [3, 4, 1])
    assert list(pieces.texts([0, 1, 2, 7, -1])) == ["<|im_start|>", "Ġa b▁", " x", "", ""]
