"""Draws docs/architecture.svg from the imports and includes of the code. `make docs` runs it.

A room is a folder of the code, or a file beside them. It stands on the lowest floor that is above all rooms it uses, so
every arrow points down. An arrow is left out where others imply it: a room that uses `checkpoint/` may use what
`checkpoint/` uses. The tooltip of a room lists all rooms that it uses.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llama_so8t"
CSRC = PACKAGE / "csrc"
PICTURE = Path(__file__).with_name("architecture.svg")

Uses = dict[str, set[str]]
"""Room -> the rooms it uses."""


def python_uses() -> Uses:
    """Rooms of the Python package; `__init__` and `__main__` are the door, no room."""
    uses: Uses = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        room = _room(file.relative_to(PACKAGE))
        if room in ("__init__", "__main__", "_upstream"):
            continue
        used = uses.setdefault(room, set())
        for name in _imports(ast.parse(file.read_text())):
            parts = name.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1] not in (room, "__version__"):
                used.add(parts[1])
    return uses


def csrc_uses() -> Uses:
    """Rooms of the C++ sources; a header is included by its name alone."""
    files = [file for file in sorted(CSRC.rglob("*")) if file.suffix in (".h", ".cpp", ".cu", ".cuh")]
    rooms = {file.name: file.parent.name for file in files}
    uses: Uses = {}
    for file in files:
        used = uses.setdefault(rooms[file.name], set())
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.M):
            target = rooms.get(name, file.parent.name)
            if target != file.parent.name:
                used.add(target)
    return uses


def _room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floors(uses: Uses) -> dict[str, int]:
    """Room -> floor, from 0; one above the highest room it uses.

    Raises:
        ValueError: rooms use each other in a circle; names one of them.
    """
    found: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(f"{' -> '.join([*above, room])} is a circle of imports")
        if room not in found:
            found[room] = 1 + max((floor(used, (*above, room)) for used in uses[room]), default=-1)
        return found[room]

    for room in uses:
        floor(room, ())
    return found


def arrows(uses: Uses) -> set[tuple[str, str]]:
    """The arrows that no chain of others implies."""

    def reached(room: str) -> set[str]:
        return {lower for used in uses[room] for lower in {used, *reached(used)}}

    return {
        (room, used) for room in uses for used in uses[room] if not any(used in reached(other) for other in uses[room])
    }


# --- drawing -----------------------------------------------------------------------------------

ROW, BOX, GAP, LANE = 84, 30, 26, 14
"""Pixels: height of a floor and of a box, space between boxes, width of an arrow that passes a floor."""


def _width(room: str) -> float:
    return 18 + 7.4 * len(room)


class Drawing:
    """One column of the picture: boxes on floors, arrows that pass the floors between them."""

    def __init__(self, uses: Uses, is_folder: Iterable[str]) -> None:
        self.uses = uses
        self.folders = set(is_folder)
        self.floor = floors(uses)
        self.chains = [self._chain(*arrow) for arrow in sorted(arrows(uses))]
        self.rows = self._rows()
        self._order()
        self.x = self._place()

    def _chain(self, upper: str, lower: str) -> list[tuple[str, ...]]:
        """The arrow as a walk: the two boxes, and a lane on every floor between."""
        between = range(self.floor[upper] - 1, self.floor[lower], -1)
        return [(upper,), *((upper, lower, str(floor)) for floor in between), (lower,)]

    def _rows(self) -> list[list[tuple[str, ...]]]:
        rows: list[list[tuple[str, ...]]] = [[] for _ in range(max(self.floor.values()) + 1)]
        for room in sorted(self.uses):
            rows[self.floor[room]].append((room,))
        for chain in self.chains:
            for lane in chain[1:-1]:
                rows[int(lane[2])].append(lane)
        return rows

    def _neighbours(self, step: int) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
        """Node -> its neighbours one floor up (step 1) or down (step -1)."""
        found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for chain in self.chains:
            for upper, lower in pairwise(chain):
                node, other = (lower, upper) if step == 1 else (upper, lower)
                found.setdefault(node, []).append(other)
        return found

    def _order(self) -> None:
        """Sorts each floor by the mean place of its neighbours, floor by floor, up and down: few crossings."""
        for sweep in range(24):
            step = 1 if sweep % 2 == 0 else -1
            neighbours = self._neighbours(step)
            floors_ = range(len(self.rows) - 2, -1, -1) if step == 1 else range(1, len(self.rows))
            for floor in floors_:
                fixed = {node: i for i, node in enumerate(self.rows[floor + step])}
                place = {node: i for i, node in enumerate(self.rows[floor])}

                def mean(node, fixed=fixed, place=place, neighbours=neighbours):
                    near = [fixed[other] for other in neighbours.get(node, ())]
                    return sum(near) / len(near) if near else place[node]

                self.rows[floor].sort(key=mean)

    def _size(self, node: tuple[str, ...]) -> float:
        return _width(node[0]) if len(node) == 1 else LANE

    def _place(self) -> dict[tuple[str, ...], float]:
        """Centres in pixels: each node near its neighbours, in the order of its floor, without overlaps."""
        x: dict[tuple[str, ...], float] = {}
        for row in self.rows:
            left = 0.0
            for node in row:
                x[node] = left + self._size(node) / 2
                left += self._size(node) + GAP
        near = [self._neighbours(1), self._neighbours(-1)]
        for sweep in range(60):
            for row in self.rows if sweep % 2 else reversed(self.rows):
                wanted = {}
                for node in row:
                    others = [x[other] for side in near for other in side.get(node, ())]
                    wanted[node] = sum(others) / len(others) if others else x[node]
                self._spread(row, wanted, x)
        low = min(x[node] - self._size(node) / 2 for node in x)
        return {node: centre - low for node, centre in x.items()}

    def _spread(self, row, wanted, x) -> None:
        """Puts the nodes of a floor where they want to be; those that would overlap share the shift."""
        groups: list[tuple[list, float]] = []  # nodes side by side, and the left edge of the first
        for node in row:
            groups.append(([node], wanted[node] - self._size(node) / 2))
            while len(groups) > 1:
                (first, left), (second, right) = groups[-2:]
                width = sum(self._size(n) + GAP for n in first)
                if left + width <= right:
                    break
                n, m = len(first), len(second)
                groups[-2:] = [(first + second, (n * left + m * (right - width)) / (n + m))]
        for nodes, left in groups:
            for node in nodes:
                x[node] = left + self._size(node) / 2
                left += self._size(node) + GAP

    @property
    def width(self) -> float:
        return max(self.x[node] + self._size(node) / 2 for node in self.x)

    @property
    def height(self) -> float:
        return (len(self.rows) - 1) * ROW + BOX

    def svg(self, left: float, bottom: float) -> Iterator[str]:
        """Arrows, then boxes."""

        def top(floor: int) -> float:
            return bottom - floor * ROW - BOX

        for chain in self.chains:
            upper, lower = chain[0][0], chain[-1][0]
            start = (left + self.x[chain[0]], top(self.floor[upper]) + BOX)
            path = [f"M{start[0]:.0f},{start[1]:.0f}"]
            x, y = start
            for node in chain[1:]:
                floor = self.floor[lower] if len(node) == 1 else int(node[2])
                nx, ny = left + self.x[node], top(floor) - (5 if len(node) == 1 else 0)
                middle = (y + ny) / 2
                path.append(f"C{x:.0f},{middle:.0f} {nx:.0f},{middle:.0f} {nx:.0f},{ny:.0f}")
                x, y = nx, ny
                if len(node) > 1:
                    y = ny + BOX
                    path.append(f"L{x:.0f},{y:.0f}")
            yield (
                f'<path class="arrow" data-from="{upper}" data-to="{lower}" '
                f'd="{" ".join(path)}" marker-end="url(#head)"/>'
            )
        for room in sorted(self.uses):
            w, y = _width(room), top(self.floor[room])
            cx = left + self.x[(room,)]
            used = ", ".join(sorted(self.uses[room]))
            label = f"{room}/" if room in self.folders else room
            yield (
                f'<g class="room" data-room="{room}" data-uses="{escape(used)}">'
                f"<title>{escape(label)} uses {escape(used) or 'nothing'}</title>"
                f'<rect x="{cx - w / 2:.0f}" y="{y:.0f}" width="{w:.0f}" height="{BOX}" rx="4"/>'
                f'<text x="{cx:.0f}" y="{y + 20:.0f}">{label}</text></g>'
            )


STYLE = """
  text { font: 13px ui-monospace, monospace; text-anchor: middle; fill: #1f2933 }
  .title { font: bold 15px sans-serif; text-anchor: start }
  .note { font: 12px sans-serif; text-anchor: start; fill: #52606d }
  .room rect { fill: #f5f7fa; stroke: #52606d } .arrow { fill: none; stroke: #829ab1; stroke-width: 1.3 }
  #head path { fill: #829ab1 }
"""


def render() -> str:
    """The picture as SVG text."""
    python, csrc = python_uses(), csrc_uses()
    columns = [
        ("Python: llama_so8t/", "imports", Drawing(python, [room for room in python if (PACKAGE / room).is_dir()])),
        ("C++: llama_so8t/csrc/", "includes", Drawing(csrc, csrc)),
    ]
    margin, head = 24, 66
    height = head + max(drawing.height for _, _, drawing in columns) + margin
    left, body = float(margin), []
    for title, verb, drawing in columns:
        n_uses = sum(len(used) for used in drawing.uses.values())
        rooms = f"{len(drawing.uses)} rooms on {len(drawing.rows)} floors"
        note = f"{rooms}, {n_uses} {verb} between them; {len(drawing.chains)} arrows imply the others"
        body.append(f'<text class="title" x="{left:.0f}" y="24">{title}</text>')
        body.append(f'<text class="note" x="{left:.0f}" y="42">{note}</text>')
        body += drawing.svg(left, height - margin)
        left += max(drawing.width, 440) + 2 * margin
    size = f'viewBox="0 0 {left - margin:.0f} {height:.0f}" width="{left - margin:.0f}" height="{height:.0f}"'
    marker = '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>{STYLE}</style>",
            f'<defs>{marker}<path d="M0,0 L8,4 L0,8 z"/></marker></defs>',
            '<rect width="100%" height="100%" fill="white"/>',
            *body,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(render())
