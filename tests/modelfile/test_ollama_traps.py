"""Keys and tensor names that Ollama reads in its own way: a converted model hits none of the traps.

The rules are those of fs/ggml, server/create.go and server/images.go of Ollama 0.33.
"""

import json

import pytest
from required import package
from tiny_models import make_base

from llama_so8t import upstream
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions

SKIPPED_PREFIXES = ("a.", "mm.", "mtp.", "s.", "v.")
"""A tensor named so makes `ollama create` keep the file unchecked."""

TYPES = {
    "F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K",
    "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4",
}  # fmt: skip
"""Others are refused with "size overflow"."""

ABSENT = (
    "so8t.pooling_type",  # an embedding model, which does not chat
    "so8t.vision.block_count",
    "so8t.audio.block_count",
    "so8t.nextn_predict_layers",
    "split.count",
    "split.no",
    "adapter.type",
)
UNSIGNED = (
    "general.file_type",
    "so8t.block_count",
    "so8t.context_length",
    "so8t.embedding_length",
    "so8t.attention.head_count",
    "so8t.attention.head_count_kv",
)
"""With another type they count as missing."""

MAX_STRING = 16 << 20
MAX_ARRAY = 64 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory, pinned_tree):
    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    package("sentencepiece")
    root = tmp_path_factory.mktemp("ollama")
    base = make_base(root / "base", hidden_size=256, intermediate_size=256)
    (base / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages }}", "tokenizer_class": "LlamaTokenizer"})
    )
    initialize(InitializeOptions(str(base), root / "model", rotations="random", scale=0.3))
    return root / "model"


FORMS = [(outtype, rotations) for outtype in ("f32", "bf16", "q8_0") for rotations in ("fold", "explicit")]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def file(request, model, tmp_path_factory):
    outtype, rotations = request.param
    out = tmp_path_factory.mktemp("file") / "out.gguf"
    options = ConvertOptions(model=model, outfile=out, outtype=outtype, rotations=rotations, progress=False)
    return upstream.gguf.GGUFReader(convert(options))


def test_no_tensor_name_skips_the_import(file):
    names = [tensor.name for tensor in file.tensors]
    assert names and not [name for name in names if name.startswith(SKIPPED_PREFIXES)]


def test_every_tensor_is_of_a_known_type_and_shape(file):
    assert {tensor.tensor_type.name for tensor in file.tensors} <= TYPES
    assert all(len(tensor.shape) <= 4 for tensor in file.tensors)


def test_no_key_changes_what_the_model_is(file):
    assert not [key for key in ABSENT if key in file.fields]
    assert file.fields["general.type"].contents() == "model"


def test_keys_have_the_types_that_are_looked_up(file):
    gguf = upstream.gguf
    for key in UNSIGNED:
        assert file.fields[key].types == [gguf.GGUFValueType.UINT32], key
    assert file.fields["general.architecture"].contents() == "so8t"
    for key in ("tokenizer.chat_template", "tokenizer.ggml.model", "tokenizer.ggml.pre"):
        assert file.fields[key].types == [gguf.GGUFValueType.STRING], key
    assert "general.alignment" not in file.fields  # 32 then


def test_every_value_is_within_the_limits_of_the_decoder(file):
    gguf = upstream.gguf
    for name, field in file.fields.items():
        assert gguf.GGUFValueType.ARRAY not in field.types[1:], f"{name}: nested array"
        value = field.contents()
        assert not isinstance(value, list) or 0 < len(value) <= MAX_ARRAY, name
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        assert max((len(text.encode()) for text in texts), default=0) <= MAX_STRING, name


def test_so8t_tensors_are_not_quantized_by_name(file):
    """A stock llama-quantize takes what has two dimensions and ends in "weight"; ours looks for "so8t_"."""
    ours = [tensor for tensor in file.tensors if "so8t" in tensor.name]
    assert ours and all("so8t_" in tensor.name and tensor.tensor_type.name == "F32" for tensor in ours)
