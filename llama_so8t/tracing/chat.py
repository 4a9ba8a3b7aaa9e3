"""Chat messages as the text that the model reads."""

import json
from typing import Any

from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files.gguf_file import GgufFile


def read_messages(text: str) -> list[dict[str, str]]:
    """Messages from JSON.

    Raises:
        ConfigError: not a list of objects with the strings ``role`` and ``content``.
    """
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--messages: found no JSON: {error}") from None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise ConfigError('--messages: expected a list such as [{"role": "user", "content": "..."}], texts only')
    return messages


def render(file: GgufFile, messages: list[dict[str, str]]) -> str:
    """Text of a chat up to where the answer begins, by the template in the file.

    Raises:
        CheckpointError: the file has no chat template, or the template fails.
        ConfigError: Jinja2 is not installed.
    """
    template = file.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{file.path}: has no chat template; give the text with --prompt")
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=True,
            bos_token=_token(file, "bos"),
            eos_token=_token(file, "eos"),
        )
    except ImportError:
        raise ConfigError("--messages needs Jinja2; install llama-so8t[heads]") from None
    except Exception as error:  # whatever the template raises
        raise CheckpointError(f"{file.path}: its chat template refuses these messages: {error}") from None
    return rendered[0]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _token(file: GgufFile, name: str) -> str:
    token, tokens = file.get(f"tokenizer.ggml.{name}_token_id"), file.get("tokenizer.ggml.tokens")
    return tokens[token] if isinstance(tokens, list) and isinstance(token, int) and 0 <= token < len(tokens) else ""
