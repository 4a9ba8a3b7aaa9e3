"""The pages of the documentation, taken apart: headings, links, tables, code."""

import re
import shlex
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Block:
    """A block between fences: its language, its lines, and the number of its first line."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Lines of a shell block as a shell reads them: without comments, continued lines joined."""
        if self.language != "sh":
            return []
        joined = self.text.replace("\\\n", " ")
        return [line for line in (uncommented(line) for line in joined.splitlines()) if line]


def uncommented(line: str) -> str:
    """The line without what follows a "#" after white space, outside of quotes."""
    quote = ""
    for i, c in enumerate(line):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i].strip()
    return line.strip()


@dataclass(frozen=True)
class Page:
    """A Markdown page, by its path from the root of the repository."""

    path: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        blocks, start, language = [], None, ""
        lines = self.text.splitlines()
        for i, line in enumerate(lines):
            if line.lstrip().startswith("```"):
                if start is None:
                    start, language = i + 1, line.strip().removeprefix("```")
                else:
                    blocks.append(Block(self.path, start + 1, language, tuple(lines[start:i])))
                    start = None
        assert start is None, f"{self.path}: a block of code is not closed"
        return blocks

    @cached_property
    def prose(self) -> list[str]:
        """The lines outside of blocks."""
        lines, inside = [], False
        for line in self.text.splitlines():
            fence = line.lstrip().startswith("```")
            inside ^= fence
            lines.append("" if inside or fence else line)
        return lines

    @cached_property
    def headings(self) -> list[tuple[int, str]]:
        """(level, text) of each heading."""
        found = (re.fullmatch(r"(#+) (.*)", line) for line in self.prose)
        return [(len(match[1]), match[2]) for match in found if match]

    @cached_property
    def anchors(self) -> set[str]:
        """Fragments that links may name, as GitHub makes them of headings."""
        found: dict[str, int] = {}
        anchors = set()
        for _, title in self.headings:
            anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            n = found.get(anchor, 0)
            anchors.add(f"{anchor}-{n}" if n else anchor)
            found[anchor] = n + 1
        return anchors

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures that are no URLs, as they are written."""
        prose = re.sub(r"`[^`]*`", "``", "\n".join(self.prose))
        targets = re.findall(r"\]\(([^()\s]+)\)", prose)
        return [target for target in targets if not re.match(r"[a-z]+:", target)]

    @cached_property
    def spans(self) -> list[str]:
        """Code inside of lines."""
        return re.findall(r"`([^`]+)`", "\n".join(self.prose))

    @cached_property
    def code(self) -> str:
        """All code: spans, and blocks of commands without their comments."""
        commands = (command for block in self.blocks for command in block.commands)
        return "\n".join([*(span.replace("\\|", "|") for span in self.spans), *commands])

    def section(self, heading: str) -> str:
        """The lines from a heading to the next of its level or a higher one."""
        lines = self.prose
        start = next(i for i, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(heading)}", line))
        level = lines[start].index(" ")
        rest = lines[start + 1 :]
        end = next((i for i, line in enumerate(rest) if re.match(rf"#{{1,{level}}} ", line)), len(rest))
        return "\n".join(rest[:end])

    def table(self, column: str) -> list[list[str]]:
        """Cells of the one table whose first column has this title, without its head."""
        lines = self.prose
        starts = [i for i, line in enumerate(lines) if cells(line)[:1] == [column]]
        assert len(starts) == 1, f"{self.path}: found {len(starts)} tables with the first column {column!r}, expected 1"
        rows = []
        for line in lines[starts[0] + 2 :]:
            if not line.startswith("|"):
                break
            rows.append(cells(line))
        return rows


def cells(line: str) -> list[str]:
    """Cells of a row of a table; "\\|" is a bar inside of one."""
    if not line.startswith("|"):
        return []
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


@cache
def pages() -> list[Page]:
    """Every page of the repository."""
    folders = ["", "docs/", "models/*/", "ggml-patches/", "findings/"]
    found = [path for folder in folders for path in ROOT.glob(f"{folder}*.md")]
    return [Page(path.relative_to(ROOT).as_posix()) for path in sorted(found)]


def page(path: str) -> Page:
    return next(page for page in pages() if page.path == path)


def words(command: str) -> list[str]:
    """The words of a command, up to what another program gets or a file."""
    found = shlex.split(command)
    end = next((i for i, word in enumerate(found) if word in ("|", "&&", ";", ">", "<", "&", "||")), len(found))
    return found[:end]
