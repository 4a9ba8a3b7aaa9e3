"""Which published layout a checkpoint has, by the names and shapes of its tensors, its flags and its files."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from llama_so8t.errors import CheckpointError
from llama_so8t.published.table import BY_ID, CLAIMS, FOLDABLE, LAYOUTS, Layout

_CONTAINERS = re.compile(
    r"^(?:(?:model_state_dict|state_dict|module|_orig_mod)\.)*(?:base_model\.model\.(?=model\.|lm_head\.))?"
)
_OWN = re.compile(r"^(?:heads|stems)\.")


@dataclass(frozen=True)
class Signature:
    """A layout and the tensors that belong to it. ``others`` are tensors of layouts that the user overruled.

    ``parameters`` maps a tensor from which R is built to its layer (None outside of the layers).
    """

    layout: Layout
    parameters: Mapping[str, int | None]
    keys: tuple[str, ...]
    others: tuple[str, ...] = ()


def plain_name(name: str) -> str:
    """A tensor name without what DataParallel, torch.compile, PEFT or a training script put before it."""
    return _CONTAINERS.sub("", name)


def identify(
    tensors: Mapping[str, Sequence[int]],
    config: Mapping[str, Any] | None = None,
    files: Collection[str] = (),
    layout: str | None = None,
    where: str = "checkpoint",
) -> Signature | None:
    """Finds the layout of a checkpoint.

    Args:
        tensors: name -> shape.
        config: its config.json.
        files: names of the files beside it.
        layout: id of the layout that the user says it is, for signatures that are mixed.
        where: names the checkpoint in errors.

    Returns:
        None where nothing of SO8T is found, or everything is in this project's own format.

    Raises:
        CheckpointError: tensors of several layouts and no ``layout``; or a ``layout`` that was not found.
    """
    config = config or {}
    if layout is not None and layout not in BY_ID:
        raise CheckpointError(f"{where}: found layout {layout!r}, expected one of {', '.join(BY_ID)}")
    if config.get("model_type") == "so8t" and "base_model_type" in config:
        return None
    found = _claimed(tensors)
    for row in LAYOUTS:
        if set(files) & set(row.files):
            found.setdefault(row.id, {})
    if not found and any(config.get(flag) for flag in CLAIMS):
        found["L6d"] = {}
    if layout is None and len(found) > 1:
        examples = (f"{id} ({next(iter(names), None) or 'a file'})" for id, names in found.items())
        raise CheckpointError(
            f"{where}: found tensors of several SO8T layouts: {', '.join(examples)}; name the right one with "
            f'"so8t_layout" in config.json'
        )
    if layout is None and not found:
        return None
    named = layout or next(iter(found))
    if named not in found:
        raise CheckpointError(
            f"{where}: found {', '.join(found) or 'no SO8T layout'}, expected layout {named} as stated"
        )
    row, names = BY_ID[named], found.pop(named)
    parameters = {name: layer for name, (is_parameter, layer) in names.items() if is_parameter}
    keys = tuple(name for name in names if name not in parameters)
    return Signature(row, parameters, keys, tuple(name for others in found.values() for name in others))


def _claimed(tensors: Mapping[str, Sequence[int]]) -> dict[str, dict[str, tuple[bool, int | None]]]:
    # layout -> its tensors -> (whether R is built from it, layer), layouts in the order of the table
    found: dict[str, dict[str, tuple[bool, int | None]]] = {}
    for name, shape in tensors.items():
        plain = plain_name(name)
        if _OWN.match(plain):
            continue
        for row in LAYOUTS:
            match = _parameter(row.id).search(plain)
            # elsewhere a short name like "theta" needs its shape; at a foldable site a wrong shape is an error
            if match and (row.site in FOLDABLE or _fits(shape, row.shape)):
                layer = match.groupdict().get("layer")
                found.setdefault(row.id, {})[name] = True, None if layer is None else int(layer)
            elif not any(key.search(plain) for key in _keys(row.id)):
                continue
            else:
                found.setdefault(row.id, {})[name] = False, None
            break
    return {row.id: found[row.id] for row in LAYOUTS if row.id in found}


@cache
def _parameter(layout: str) -> re.Pattern[str]:
    return re.compile(BY_ID[layout].parameter or r"(?!)")


@cache
def _keys(layout: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(key) for key in BY_ID[layout].keys)


def _fits(shape: Sequence[int], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (None, size) for size, want in zip(shape, expected, strict=True))
