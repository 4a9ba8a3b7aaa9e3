"""Imports point one way, as docs/architecture.md says."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llama_so8t"

ALLOWED = {
    "errors": set(),
    "algebra": {"errors"},
    "layout": {"errors", "algebra"},
    "model_spec": {"errors", "algebra", "layout"},
    "bindings": {"errors"},
    "kernels": {"errors", "upstream", "bindings"},
    "folding": {"errors", "algebra", "layout", "model_spec", "kernels"},
    "upstream": {"errors"},
    "torch_file": {"errors"},
    "layouts": {"errors", "algebra", "folding", "torch_file"},
    "checkpoint": {
        *("errors", "algebra", "layout", "model_spec", "folding", "kernels", "upstream", "layouts", "torch_file"),
    },
    "conversion": {
        *("errors", "tools", "algebra", "layout", "model_spec", "folding", "kernels", "upstream", "checkpoint"),
    },
    "heads": {"errors", "algebra", "layout", "model_spec", "folding", "kernels", "upstream", "checkpoint", "hf"},
    "inspection": {"errors", "algebra", "layout", "model_spec", "folding", "kernels", "upstream", "checkpoint"},
    "tracing": {"errors", "layout", "bindings", "checkpoint", "inspection"},
    "audit": {"errors", "checkpoint"},
    "diagnosis": {"errors", "algebra", "layout", "model_spec", "layouts", "torch_file", "checkpoint", "inspection"},
    "modelfile": {"errors", "layout", "checkpoint"},
    "verification": {
        *("errors", "layout", "kernels", "upstream", "bindings", "checkpoint", "conversion", "inspection", "hf"),
    },
    "sidecars": {"errors", "layout", "model_spec", "checkpoint", "hf"},
    "benchmarks": {
        *("errors", "layout", "model_spec", "folding", "kernels", "upstream", "bindings", "tools", "checkpoint"),
        "conversion",
    },
    "hf": {"errors", "algebra", "layout", "model_spec"},
    "tools": {"errors", "bindings"},
}

WITHOUT_TORCH = ("errors", "algebra", "layout", "model_spec", "kernels", "folding", "bindings", "tools")


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module; `cli` and the package's own files may import everything."""
    files = [file for file in PACKAGE.rglob("*.py") if "_upstream" not in file.parts]
    rooms = [(file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file) for file in files]
    return [(room, file) for room, file in rooms if room not in ("cli", "__init__", "__main__")]


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_is_in_the_table():
    assert {room for room, _ in modules()} == set(ALLOWED)


def test_imports_point_one_way():
    wrong = []
    for room, file in modules():
        for name in imports(file):
            target = name.split(".")[1] if name.startswith("llama_so8t.") else room
            if target not in ALLOWED[room] | {room, "__version__"}:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_the_mathematics_and_the_bindings_need_no_torch():
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for room, file in modules()
        if room in WITHOUT_TORCH
        for name in imports(file)
        if name.split(".")[0] in ("torch", "transformers")
    ]
    assert not wrong
