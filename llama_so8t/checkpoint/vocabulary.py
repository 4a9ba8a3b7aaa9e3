"""The tokenizer of a model that came as GGUF: ``vocab.gguf``, and tokenizer.json for Python users."""

from dataclasses import dataclass
from pathlib import Path

from llama_so8t import upstream
from llama_so8t.checkpoint.gguf_base import ROPE_FREQS
from llama_so8t.files.gguf_file import GgufFile

NAME = "vocab.gguf"
"""Keys of a GGUF base without its weights. In a directory it is the tokenizer, whatever else is there."""


@dataclass(frozen=True)
class Vocabulary:
    """Where tokenizer and chat template are: a GGUF file, copied key by key, or files in a directory."""

    directory: Path | None = None
    gguf: Path | None = None


def write_vocabulary(file: GgufFile, path: Path) -> None:
    """Writes every key of a GGUF file, byte for byte, without its weights: llama.cpp's form of a vocabulary.

    The rope factors of Llama 3 are kept too: they are configuration that GGUF happens to store as a tensor.
    """
    writer = upstream.gguf.GGUFWriter(path, arch=file.get("general.architecture"))
    keys = {key: entry.for_writer() for key, entry in file.metadata.items() if not entry.is_empty_array}
    upstream.put_keys(writer, keys)
    writer.data_alignment = file.get("general.alignment", writer.data_alignment)
    if ROPE_FREQS in file.tensors:
        writer.add_tensor(ROPE_FREQS, file.tensors[ROPE_FREQS].read())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(directory: Path) -> list[str]:
    """Writes tokenizer.json and its companions, if transformers can make them from ``vocab.gguf``.

    Returns:
        Notes for the user: empty, or why there is no tokenizer.json.
    """
    try:
        from transformers import AutoTokenizer

        upstream.apply_verbosity()
        AutoTokenizer.from_pretrained(str(directory), gguf_file=NAME).save_pretrained(directory)
    except Exception as error:  # whatever a third-party reader raises, it costs a convenience only
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return [f"no tokenizer.json: transformers cannot make it from the GGUF ({reason[0]})"]
    return []
