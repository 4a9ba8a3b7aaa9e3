"""Imports and includes point one way: the two tables of docs/architecture.md are read and held against the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llama_so8t"
CSRC = PACKAGE / "csrc"

FREE = ("cli", "__init__", "__main__")
"""`cli` and the package's own files may import everything."""


def table(heading: str) -> list[list[str]]:
    """Cells of the first table under a heading of docs/architecture.md, without its head, back quotes removed."""
    page = (ROOT / "docs/architecture.md").read_text()
    lines = page[page.index(f"\n## {heading}") :].splitlines()
    rows = [
        line
        for line in lines[: lines.index("", next(i for i, s in enumerate(lines) if s[:1] == "|"))]
        if line[:1] == "|"
    ]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows[2:]]


def names(cell: str) -> set[str]:
    """Names in a cell: "a, b/" -> {"a", "b"}; "-" is none."""
    return {name.strip().rstrip("/") for name in cell.split(",")} - {"-", ""}


def below(allowed: dict[str, set[str]]) -> dict[str, set[str]]:
    """Each room with all that it may use: what its row names, and what the rows of these name."""
    result = {room: set(direct) for room, direct in allowed.items()}
    for _ in allowed:
        for reached in result.values():
            reached |= {lower for name in reached if name in allowed for lower in allowed[name]}
    return result


def python_rooms() -> dict[str, set[str]]:
    return {room: names(cell) for cells in table("Python") for room in names(cells[0]) for cell in [cells[2]]}


def csrc_rooms() -> dict[str, set[str]]:
    return {room: names(cells[3]) for cells in table("C++") for room in names(cells[0])}


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module that has a row."""
    files = [file for file in PACKAGE.rglob("*.py") if "_upstream" not in file.parts]
    rooms = [(file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file) for file in files]
    return [(room, file) for room, file in rooms if room not in FREE]


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def includes(file: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.M)


def sources() -> dict[str, Path]:
    """Our C++ files by name; a header is included by its name alone."""
    return {file.name: file for file in CSRC.rglob("*") if file.suffix in (".h", ".cpp", ".cu", ".cuh")}


@pytest.mark.parametrize("rooms", [python_rooms, csrc_rooms])
def test_no_room_is_below_itself(rooms):
    assert [room for room, reached in below(rooms()).items() if room in reached] == []
    assert set().union(*rooms().values()) <= set(rooms())


def test_every_python_room_is_in_the_table():
    assert {room for room, _ in modules()} == set(python_rooms())


def test_python_imports_point_down():
    allowed = below(python_rooms())
    wrong = []
    for room, file in modules():
        for name in imports(file):
            target = name.split(".")[1] if name.startswith("llama_so8t.") else room
            if target not in allowed[room] | {room, "__version__"}:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_rooms_that_need_no_torch_import_none():
    torch_free = {room for cells in table("Python") for room in names(cells[0]) if cells[3] == "no"}
    assert len(torch_free) >= 8
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for room, file in modules()
        if room in torch_free
        for name in imports(file)
        if name.split(".")[0] in ("torch", "transformers")
    ]
    assert not wrong


def test_every_csrc_room_is_in_the_table():
    assert {file.parent.relative_to(CSRC).as_posix() for file in sources().values()} == set(csrc_rooms())
    assert len(sources()) == sum(file.suffix in (".h", ".cpp", ".cu", ".cuh") for file in CSRC.rglob("*"))


def test_cpp_includes_point_down():
    allowed = below(csrc_rooms())
    files = sources()
    wrong = [
        f"{file.relative_to(CSRC)} includes {files[name].relative_to(CSRC)}"
        for file in files.values()
        for name in includes(file)
        if name in files and files[name].parent.name not in allowed[file.parent.name] | {file.parent.name}
    ]
    assert not wrong


def test_no_header_or_source_includes_in_a_circle():
    """A unit is a header with the source of its name; no unit reaches itself by includes."""
    files = sources()
    units: dict[str, set[str]] = {}
    for file in files.values():
        targets = {Path(name).stem for name in includes(file) if name in files}
        units.setdefault(file.stem, set()).update(targets - {file.stem})
    assert [unit for unit, reached in below(units).items() if unit in reached] == []


def test_the_file_table_names_every_file():
    """The second table of the C++ part has each file of csrc."""
    page = (ROOT / "docs/architecture.md").read_text()
    assert [name for name, file in sources().items() if f"`{file.stem}" not in page] == []
