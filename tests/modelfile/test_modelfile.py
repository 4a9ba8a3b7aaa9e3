"""What `so8t modelfile` writes, Ollama's grammar reads back."""

import json
import random
import re

import gguf_files
import numpy as np
import pytest
from modelfile_grammar import parse

from llama_so8t import cli
from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.modelfile import MAX_CONTEXT, REQUIRES, write_modelfile

TOKENS = ["<unk>", "<s>", "</s>", "<|im_end|>", "plain", ' say "no"\n', 'ends"""\nline', "null\x00", ""]
UNKNOWN, CONTROL, NORMAL = 2, 3, 1
TYPES = [UNKNOWN, CONTROL, CONTROL, CONTROL, NORMAL, CONTROL, CONTROL, CONTROL, CONTROL]


@pytest.fixture
def write_gguf(tmp_path, pinned_tree):
    """Writes a file with keys and no tensors: ``write_gguf(name="m.gguf", **{"general.license": ...})``."""

    def write(name="m.gguf", tokens=TOKENS, arch="so8t", **keys):
        keys = {f"{arch}.context_length": 4096, "tokenizer.ggml.eos_token_id": 2} | keys
        vocabulary = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": TYPES}
        given = {key: value for key, value in keys.items() if value is not None}
        return gguf_files.write_gguf(tmp_path / name, arch, given | vocabulary)

    return write


def read_back(path):
    return parse(path.read_bytes())


def values(found, name):
    return [value for key, value in found if key == name]


def test_the_grammar_of_the_tests_is_the_described_one():
    text = b'# a\nfrom ./m.gguf\r\nParameter stop "</s>"\nLICENSE """\na "b"\n"""  \nSYSTEM\tbare text \n'
    assert parse(text) == [
        ("from", "./m.gguf"), ("stop", "</s>"), ("license", '\na "b"\n'), ("system", "bare text"),
    ]  # fmt: skip
    refused = (b'FROM "open', b"PARAMETER q8_0 1\nFROM a", b"DESCRIPTION x", b"LICENSE x", b"\xef\xbb\xbfFROM a")
    for bad in refused:
        with pytest.raises(ValueError):
            parse(bad)


def test_sampling_comes_from_the_keys_of_the_file(write_gguf):
    path = write_gguf(
        **{
            "general.sampling.temp": 0.6,
            "general.sampling.top_p": 0.95,
            "general.sampling.top_k": 20,
            "general.sampling.penalty_repeat": 1.05,
        }
    )
    found = read_back(write_modelfile(path))
    assert found == [
        ("from", "./m.gguf"), ("temperature", "0.6"), ("top_k", "20"), ("top_p", "0.95"), ("repeat_penalty", "1.05"),
        ("num_ctx", "4096"), ("stop", "</s>"), ("requires", REQUIRES),
    ]  # fmt: skip


def test_generation_config_comes_first(write_gguf):
    path = write_gguf(**{"general.sampling.temp": 0.6, "general.sampling.top_k": 20})
    config = {"temperature": 0.1, "repetition_penalty": 2, "eos_token_id": [3, 2, 4], "min_p": None, "do_sample": True}
    found = dict(read_back(write_modelfile(path, generation_config=config)))
    assert (found["temperature"], found["top_k"], found["repeat_penalty"]) == ("0.1", "20", "2.0")
    assert "min_p" not in found
    # token 4 is plain text: an answer may contain it
    assert values(read_back(path.with_name("Modelfile")), "stop") == ["<|im_end|>", "</s>"]


@pytest.mark.parametrize("length", [1, MAX_CONTEXT, 2**31])
def test_the_context_is_bounded(write_gguf, length):
    found = dict(read_back(write_modelfile(write_gguf(**{"so8t.context_length": length}))))
    assert int(found["num_ctx"]) == min(length, MAX_CONTEXT)


def test_there_is_no_template_and_no_system_text_unless_asked_for(write_gguf):
    path = write_gguf(**{"tokenizer.chat_template": "{{ messages }}"})
    made = write_modelfile(path)
    assert not {"template", "system", "renderer", "parser"} & {name for name, _ in read_back(made)}
    write_modelfile(path, system='Say "yes".\n\n　全角　', replace=True)
    assert values(read_back(made), "system") == ['Say "yes".\n\n 全角 ']


@pytest.mark.parametrize(
    ("arch", "keys", "note"),
    [("so8t", {}, True), ("qwen3", {}, False), ("qwen3", {"so8t.heads": "safety"}, True)],
    ids=["so8t", "stock", "stock-with-heads"],
)
def test_a_note_says_what_stock_ollama_cannot_run(write_gguf, arch, keys, note):
    made = write_modelfile(write_gguf(arch=arch, **keys))
    assert ("patched llama-server" in made.read_text()) == note
    assert dict(read_back(made))["num_ctx"] == "4096"


def test_the_bytes_are_utf8_without_a_mark_and_with_unix_line_ends(write_gguf):
    data = write_modelfile(write_gguf(**{"general.license": "a\r\nb é"})).read_bytes()
    assert not data.startswith(b"\xef\xbb\xbf") and b"\r" not in data
    assert data.endswith(b"\n") and "é" in data.decode()


def test_the_licence_is_that_of_the_keys_and_of_the_model_directory(write_gguf, tmp_path):
    path = write_gguf(
        **{"general.license": "other", "general.license.name": "qwen", "general.license.link": "https://x/y"}
    )
    (tmp_path / "LICENSE").write_bytes(b'\xef\xbb\xbfPermission is "hereby"\x0c\ngranted\n')
    keys = "other\nqwen\nhttps://x/y"
    assert values(read_back(write_modelfile(path)), "license") == [keys]  # not a model directory
    (tmp_path / "config.json").write_text("{}")
    found = read_back(write_modelfile(path, replace=True))
    assert values(found, "license") == [keys, 'Permission is "hereby"\ngranted\n']
    other = tmp_path / "other.txt"
    other.write_text("mine")
    assert values(read_back(write_modelfile(path, license_file=other, replace=True)), "license") == [keys, "mine"]


@pytest.mark.parametrize(
    "name",
    ["a b.gguf", ' "quoted".gguf', "~home.gguf", '"""', "line\nbreak.gguf", 'a"\nb.gguf', "trailing ", "-tab\t",
     "日本語.gguf", "#hash", "a'b.gguf", "llama3:latest"],
)  # fmt: skip
def test_every_file_name_is_read_back(write_gguf, name):
    path = write_gguf(name)
    assert values(read_back(write_modelfile(path)), "from") == [f"./{name}"]


@pytest.mark.parametrize("name", ["null\u200b.gguf", "bell\x07.gguf", "wide　space.gguf", 'a"""\nb.gguf'])
def test_a_name_that_the_grammar_cannot_express_is_refused(write_gguf, name):
    path = write_gguf(name)
    with pytest.raises(ConversionError, match="the file name cannot be written"):
        write_modelfile(path)
    assert not path.with_name("Modelfile").exists()


def test_from_is_relative_to_the_modelfile(write_gguf, tmp_path):
    path = write_gguf()
    for directory, expected in (("deep/er", "../../m.gguf"), (".", "./m.gguf")):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        made = write_modelfile(path, tmp_path / directory / "M")
        assert values(read_back(made), "from") == [expected]


def test_hostile_strings_stay_values(write_gguf):
    """Random texts of the grammar's own pieces: what is written is read back, or refused."""
    pieces = ['"', '""', '"""', "\n", "\r", " ", "\t", "#", "FROM evil", "SYSTEM x", "é", "\x00", "\u2028", "\u3000"]
    rng = random.Random(3)
    written = 0
    for _ in range(400):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 6)))
        path = write_gguf(**{"general.license": text})
        try:
            found = read_back(write_modelfile(path, system=text, replace=True))
        except ConversionError:
            assert re.search(r'"""[ \t]*\n', "".join(c for c in text.replace("\r\n", "\n") if c not in "\x00\u2028\r"))
            continue
        kept = text.replace("\r\n", "\n").replace("\u3000", " ")
        kept = "".join(c for c in kept if c not in "\r\x00\u2028")
        assert values(found, "system") == [kept]
        assert values(found, "license") == ([kept] if text else [])
        others = [name for name, _ in found if name not in ("license", "system")]
        assert others == ["from", "num_ctx", "stop", "requires"]
        written += 1
    assert written > 200


@pytest.mark.parametrize(("token", "stops"), [(5, [' say "no"\n']), (6, []), (7, []), (8, []), (99, []), (4, [])])
def test_hostile_tokens_are_written_or_left_out(write_gguf, token, stops):
    path = write_gguf(**{"tokenizer.ggml.eos_token_id": token})
    assert values(read_back(write_modelfile(path)), "stop") == stops


def test_a_token_that_is_not_utf8_is_left_out(write_gguf):
    path = write_gguf(tokens=[b"\xff\xfe"] * len(TOKENS))
    assert values(read_back(write_modelfile(path)), "stop") == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"temperature": "hot"}, "temperature: found 'hot', expected a number"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": 10**400}, "temperature: found 1000"),
        ({"top_k": 1.5}, "top_k: found 1.5, expected a whole number"),
        ({"top_k": True}, "top_k: found True"),
        ({"top_p": [0.9]}, "top_p"),
    ],
)
def test_a_wrong_value_is_named(write_gguf, config, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        write_modelfile(write_gguf(), generation_config=config)


def test_a_wrong_key_is_named(write_gguf):
    for key, value in (("so8t.context_length", "long"), ("general.license", 7), ("general.sampling.top_k", 0.5)):
        with pytest.raises(CheckpointError, match=re.escape(key)):
            write_modelfile(write_gguf(**{key: value}))


def test_a_licence_that_is_no_text_is_refused(write_gguf, tmp_path):
    path, licence = write_gguf(), tmp_path / "LICENSE"
    licence.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConversionError, match="not UTF-8"):
        write_modelfile(path, license_file=licence)
    licence.write_bytes(b" " * (1 << 21))
    with pytest.raises(ConversionError, match="expected a licence of at most"):
        write_modelfile(path, license_file=licence)


def test_an_existing_file_stays_unless_forced(write_gguf, tmp_path):
    path = write_gguf()
    (tmp_path / "Modelfile").write_text("mine")
    with pytest.raises(ConversionError, match="exists already"):
        write_modelfile(path)
    assert (tmp_path / "Modelfile").read_text() == "mine"
    write_modelfile(path, replace=True)
    assert (tmp_path / "Modelfile").read_text().startswith("# written by so8t")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Modelfile", "m.gguf"]


def test_the_command_writes_a_modelfile_and_says_where(write_gguf, tmp_path, capsys, monkeypatch):
    if "modelfile" not in cli.COMMANDS:
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "modelfile"))
    path = write_gguf()
    licence = tmp_path / "l.txt"
    licence.write_text("do what you like")
    options = ["--outfile", str(tmp_path / "M"), "--system", "Be kind.", "--license", str(licence)]
    arguments = ["modelfile", str(path), *options]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'M'}\n"
    found = dict(read_back(tmp_path / "M"))
    assert (found["system"], found["license"]) == ("Be kind.", "do what you like")
    assert cli.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*arguments, "--force"]) == 0
    assert cli.main(["modelfile", str(tmp_path / "none.gguf")]) == 1


def test_the_command_names_heads_that_were_never_fitted(tmp_path, capsys, pinned_tree):
    for weight, said in ((0.0, True), (1.0, False)):
        keys = {"so8t.heads": ["safety"], "so8t.context_length": 64, "tokenizer.ggml.tokens": TOKENS}
        tensors = {"so8t_head.safety.weight": np.full((2, 8), weight, np.float32)}
        path = gguf_files.write_gguf(tmp_path / "m.gguf", "so8t", keys | {"tokenizer.ggml.token_type": TYPES}, tensors)
        assert cli.main(["modelfile", str(path), "--force"]) == 0
        assert ("warning: head safety has weights of zeros" in capsys.readouterr().err) == said


def test_float32_values_are_short(write_gguf):
    found = dict(read_back(write_modelfile(write_gguf(), generation_config={"temperature": float(np.float32(0.7))})))
    assert found["temperature"] == "0.7"
    assert json.loads(found["temperature"]) == 0.7
