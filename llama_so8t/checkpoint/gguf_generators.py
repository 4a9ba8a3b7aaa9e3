"""The generators of a layer of a GGUF file: rows of one tensor, or in a file of version 1 a tensor for each."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from llama_so8t.algebra import DIM
from llama_so8t.errors import CheckpointError
from llama_so8t.format import SITES, Keys, Tensors, generator_rows, n_generators


def read_generators(
    path: Path,
    version: int,
    layer: int,
    sites: Collection[str],
    hidden_size: int,
    n_head: int,
    read: Callable[[str, int], np.ndarray],
) -> dict[str, tuple[str, np.ndarray]]:
    """Generators of the sites in use, in the order of `SITES`: name -> where it stands, for errors; ``(n, 28)``.

    Args:
        path: of the file, for errors.
        version: of the format of the file.
        layer: number of the layer.
        sites: sites that the file has, explicit or folded.
        hidden_size: width of the model.
        n_head: attention heads.
        read: values ``(n, 28)`` of a tensor by its name, which has at most so many rows.

    Raises:
        CheckpointError: the rows of the one tensor are not those of the sites; what ``read`` raises.
    """
    names = [name for site in SITES.values() if site.name in sites for name in site.generator_names]
    if version == 1:
        tensors = {name: Tensors.GENERATOR.format(layer=layer, name=name) for name in names}
        return {name: (tensor, read(tensor, max(1, hidden_size // DIM))) for name, tensor in tensors.items()}
    if not names:
        return {}
    tensor = Tensors.GENERATORS.format(layer=layer)
    values = read(tensor, max(1, sum(n_generators(name, hidden_size, n_head, shared_blocks=False) for name in names)))
    rows = generator_rows(sites, len(values), hidden_size, n_head)
    if rows is None:
        expected = {
            sum(n_generators(name, hidden_size, n_head, shared_blocks) for name in names)
            for shared_blocks in (True, False)
        }
        raise CheckpointError(
            f"{path}: tensor {tensor} has {len(values)} rows, expected {' or '.join(map(str, sorted(expected)))} for "
            f"the sites in {Keys.ROTATION_EXPLICIT} and {Keys.ROTATION_FOLDED}"
        )
    return {name: (f"{tensor} ({name})", values[of_generator]) for name, of_generator in rows.items()}
