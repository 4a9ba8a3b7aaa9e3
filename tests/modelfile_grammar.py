"""Parser of Ollama's Modelfile grammar, written from its description, for reading back what we write.

- Commands are words of letters, any case, then one space or tab, then a value. ``#`` starts a comment line.
- ``PARAMETER name value``: the name has letters, digits and ``_``.
- A value is bare, ``"..."`` or three-quoted; spaces around it do not count. There are no escapes.
- A value ends at the first line end where it is complete: a bare one at the first line end, a quoted one
  where the text so far, without spaces around it, ends with its quotes.
- Characters that do not print are dropped, but for line ends, spaces and tabs inside a value.
"""

import re

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
PARAMETERS = (
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict", "num_keep", "seed",
    "num_predict", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "temperature", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "stop",
)  # fmt: skip
INTEGERS = ("num_ctx", "top_k", "repeat_last_n")
LINE_ENDS = "\r\n"


def parse(data: bytes) -> list[tuple[str, str]]:
    """(command or parameter, value) in file order; ``from`` is "from".

    Raises:
        ValueError: anything that Ollama would refuse.
    """
    text = data.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("starts with a byte order mark")
    found, at = [], 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = line_end(text, at)
        else:
            command = re.compile(r"([A-Za-z]+)[ \t]").match(text, at)
            if command is None or command[1].lower() not in COMMANDS:
                raise ValueError(f"no command at {text[at : at + 20]!r}")
            name, at = command[1].lower(), command.end()
            if name == "parameter":
                parameter = re.compile(r"([A-Za-z0-9_]+)[ \t]").match(text, at)
                if parameter is None or parameter[1] not in PARAMETERS:
                    raise ValueError(f"no parameter at {text[at : at + 20]!r}")
                name, at = parameter[1], parameter.end()
            value, at = read_value(text, at)
            if name in PARAMETERS and name != "stop":
                (int if name in INTEGERS else float)(value)
            found.append((name, value))
    if "from" not in dict(found):
        raise ValueError("no FROM line")
    return found


def read_value(text: str, at: int) -> tuple[str, int]:
    kept = ""
    while at < len(text):
        if text[at] in LINE_ENDS and complete(kept.strip()) is not None:
            break
        if text[at] in " \t\r\n" or text[at].isprintable():
            kept += text[at]
        at += 1
    value = complete(kept.strip())
    if value is None:
        raise ValueError(f"unexpected end in {kept!r}")
    return value, at


def complete(text: str) -> str | None:
    """The value inside the quotes, or None while they are open."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def line_end(text: str, at: int) -> int:
    while at < len(text) and text[at] not in LINE_ENDS:
        at += 1
    return at
