"""Python code of the pinned llama.cpp tree: its ``gguf`` and, for Hugging Face bases, its ``conversion``.

The wheel named gguf on the package index is not the tree's gguf-py, even where both carry one version
number, so every other module takes ``gguf`` from here. Use as attributes: ``upstream.gguf`` needs numpy
only; ``upstream.conversion`` imports torch and transformers too.
"""

import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llama_so8t.errors import So8tError

ENVIRONMENT_VARIABLE = "LLAMA_CPP_SOURCE"

_PACKAGE = Path(__file__).parent
_BUNDLED = _PACKAGE / "_upstream"
_BUILT = _PACKAGE.parent / "build" / "llama.cpp"
_PARTS = ("gguf-py/gguf/__init__.py", "conversion/__init__.py")
_LOGGERS = ("hf-to-gguf", "gguf", "metadata", "gguf-convert", "transformers")
_verbose = False


def source() -> Path:
    """The folder that holds ``gguf-py/`` and ``conversion/`` of the pinned tree.

    Looked for in this order: the environment variable LLAMA_CPP_SOURCE, the copy inside an installed
    wheel, ``build/llama.cpp`` of a clone.

    Raises:
        So8tError: none is complete.
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        missing = _missing(Path(override))
        if missing:
            raise So8tError(
                f"{ENVIRONMENT_VARIABLE}={override}: found no {missing} there, "
                f"expected a llama.cpp source tree; correct the variable, or unset it and run `make source`"
            )
        return Path(override)
    for candidate in (_BUNDLED, _BUILT):
        if not _missing(candidate):
            return candidate
    raise So8tError(
        f"the pinned llama.cpp source is missing: found neither {_BUNDLED} nor {_BUILT} with "
        f"{' and '.join(_PARTS)}; run `make source`, or set {ENVIRONMENT_VARIABLE}"
    )


def set_verbose(verbose: bool) -> None:
    """Lets the messages of upstream's own modules through, or holds them back (the default)."""
    global _verbose
    _verbose = verbose
    apply_verbosity()


def apply_verbosity() -> None:
    """Sets the levels that `set_verbose` asked for; again after an import of transformers, which sets its own."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if _verbose else logging.CRITICAL + 1)
    if _verbose:
        logging.basicConfig(level=logging.INFO)


apply_verbosity()


def __getattr__(name: str) -> Any:
    if name == "gguf":
        return _load("gguf", "gguf-py/gguf")
    if name == "conversion":
        _load("gguf", "gguf-py/gguf")
        return _load("conversion", "conversion")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def put_keys(writer: Any, keys: Mapping[str, Any]) -> None:
    """Gives a `gguf.GGUFWriter` these keys in this order and no others; values are `gguf.GGUFValue`.

    Its own methods cannot: they begin with the architecture, and warn when that is set again.
    """
    writer.kv_data[0] = dict(keys)


def keys_of(writer: Any) -> dict[str, Any]:
    """The keys that a `gguf.GGUFWriter` has got so far, in their order; values are `gguf.GGUFValue`."""
    return dict(writer.kv_data[0])


def _missing(root: Path) -> str:
    return " and ".join(part for part in _PARTS if not (root / part).is_file())


def _load(name: str, folder: str) -> ModuleType:
    """Imports package ``name`` from the pinned tree, without a change of sys.path."""
    init = (source() / folder / "__init__.py").resolve()
    loaded = sys.modules.get(name)
    if loaded is not None:
        found = getattr(loaded, "__file__", None)
        if found is None or Path(found).resolve() != init:
            raise So8tError(
                f"module {name!r} is already imported from {found}, expected {init}; "
                f"import llama_so8t.upstream first, or use a process that does not import the other {name!r}"
            )
        return loaded
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    if spec is None or spec.loader is None:
        raise So8tError(f"{init}: is no Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # upstream's own files put gguf-py, which holds a folder named "tests", on sys.path unless this is set
    held = os.environ.get("NO_LOCAL_GGUF")
    os.environ["NO_LOCAL_GGUF"] = "1"
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        _forget(name)
        raise So8tError(f"{init}: cannot be imported: {error}; install what is missing with pip") from error
    except BaseException:
        _forget(name)
        raise
    finally:
        if held is None:
            del os.environ["NO_LOCAL_GGUF"]
        else:
            os.environ["NO_LOCAL_GGUF"] = held
    if name == "gguf":
        vars(module)["__version__"] = _version(init.parents[1] / "pyproject.toml")
    apply_verbosity()
    return module


def _version(file: Path) -> str:
    # transformers asks for it before it reads the tokenizer of a GGUF file, and finds no wheel to ask
    found = re.search(r'^version = "([^"]+)"', file.read_text(), re.MULTILINE) if file.is_file() else None
    return found[1] if found else "0"


def _forget(name: str) -> None:
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[loaded]
