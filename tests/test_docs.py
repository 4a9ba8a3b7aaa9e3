"""What the pages say exists in the code, and what the code offers is on a page."""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import pytest
import yaml
from pages import ROOT, Page, page, pages, words

from llama_so8t.audit.records import Event
from llama_so8t.cli import build_parser

CSRC = ROOT / "llama_so8t/csrc"

EACH_PAGE = pytest.mark.parametrize("page_", pages(), ids=lambda page_: page_.path)

FOREIGN_FLAGS = {
    "--build": "cmake",
    "--target": "cmake",
    "--preset": "cmake",
    "--reject": "git apply",
    "--no-deps": "pip",
    "--quantize": "ollama create",
}
"""Flags of programs that are neither ours nor llama.cpp's, and the program."""


def script(name: str) -> ModuleType:
    """A Python file of docs/."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def sources() -> dict[str, str]:
    """Every tracked text file but the pages, by its path."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.split("\n") if listed.returncode == 0 else []
    found = {name: ROOT / name for name in files if name and not re.search(r"\.(md|png|svg|safetensors)$", name)}
    assert len(found) > 200, "expected a clone of the repository"
    return {name: path.read_text(errors="replace") for name, path in found.items() if path.is_file()}


def code_of(pattern: str) -> str:
    """The text of all sources whose path matches."""
    return "\n".join(text for name, text in sources().items() if re.match(pattern, name))


def all_documentation() -> str:
    return "\n".join(page.text for page in pages() if page.path != "CHANGELOG.md")


# --- pages and links ---------------------------------------------------------------------------


@EACH_PAGE
def test_links_lead_to_files_and_headings(page_):
    wrong = []
    for link in page_.links:
        target, _, anchor = link.partition("#")
        path = (ROOT / page_.path).parent / target if target else ROOT / page_.path
        if not path.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor:
            name = path.resolve().relative_to(ROOT).as_posix()
            if anchor not in page(name).anchors:
                wrong.append(f"{link}: {name} has no such heading")
    assert not wrong


def test_every_page_can_be_reached_from_the_index():
    reached, new = set(), {"docs/README.md"}
    while new:
        reached |= new
        links = {(ROOT / name).parent / link.partition("#")[0] for name in new for link in page(name).links}
        found = {path.resolve().relative_to(ROOT).as_posix() for path in links if path.suffix == ".md"}
        new = found - reached
    assert {page.path for page in pages()} - reached == set()


def test_the_index_has_one_line_for_each_page():
    index = page("docs/README.md")
    linked = [link for line in index.prose if line.startswith(("- ", "| ")) for link in links_in(line)]
    expected = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(link for link in linked if "/" not in link) == sorted(expected)


def links_in(line: str) -> list[str]:
    return re.findall(r"\]\(([^()\s]+)\)", line)


@EACH_PAGE
def test_files_that_a_page_names_exist(page_):
    folders = "llama_so8t|tests|docs|cmake|configs|ggml-patches|models|monitoring"
    named = {span for span in page_.spans if re.fullmatch(rf"({folders})/[\w./-]+", span)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_japanese_page_has_the_headings_and_commands_of_the_english_one():
    english, japanese = page("README.md"), page("README.ja.md")
    assert [level for level, _ in japanese.headings] == [level for level, _ in english.headings]
    assert commands_of(japanese) == commands_of(english)
    assert [link for link in japanese.links if link != "README.md"] == [
        link for link in english.links if link != "README.ja.md"
    ]


def commands_of(page_: Page) -> list[list[str]]:
    return [block.commands for block in page_.blocks if block.commands]


def test_every_block_names_its_language():
    """Blocks of "sh" are held against the programs, so a block must not lack its name by accident."""
    assert {block.where for page in pages() for block in page.blocks if not block.language} == set()
    assert {block.language for page in pages() for block in page.blocks} <= {"sh", "json", "python", "cpp", "text"}


def test_the_picture_of_the_architecture_is_current():
    """Rooms, what they use, and arrows; not where they are drawn."""
    draw = script("draw_architecture")
    text = draw.PICTURE.read_text()
    python, csrc = draw.python_uses(), draw.csrc_uses()
    drawn = dict(re.findall(r'data-room="(\w+)" data-uses="([^"]*)"', text))
    current = {room: ", ".join(sorted(used)) for uses in (python, csrc) for room, used in uses.items()}
    assert drawn == current, "imports or includes have changed: run `make docs`"
    listed = re.findall(r'data-from="(\w+)" data-to="(\w+)"', text)
    assert sorted(listed) == sorted([*draw.arrows(python), *draw.arrows(csrc)])
    assert "architecture.svg" in page("docs/architecture.md").links


@EACH_PAGE
def test_sentences_have_a_subject(page_):
    """None starts with a relative clause: not "What stands there ..." or "Who has the key can ..."."""
    prose = "\n".join("" if line.startswith("#") else line for line in page_.prose)
    found = re.findall(r"(?:^(?:- |\| )?|[.:;] )(?:What|Whoever|Who|Where a|Of) [^.?|]*", prose, re.M)
    assert [sentence for sentence in found if not sentence.endswith("?")] == []


# --- the command so8t --------------------------------------------------------------------------


def parsers() -> dict[str, argparse.ArgumentParser]:
    """ "so8t audit verify" -> its parser, for every command and subcommand."""
    return {parser.prog: parser for parser in script("list_commands").commands(build_parser())}


def so8t_commands(page_: Page) -> Iterator[tuple[str, str]]:
    """(where, command) of every line of a block that starts so8t or one of its entries."""
    entry = {"python convert_so8t_to_gguf.py": "so8t convert", "python -m llama_so8t": "so8t"}
    for block in page_.blocks:
        for command in block.commands:
            for name, meant in entry.items():
                command = command.replace(name, meant)
            for match in re.finditer(r"(?:^|[\s=])(so8t [a-z].*)", command):
                yield block.where, match[1]


def test_commands_md_is_what_the_program_says():
    written = page("docs/commands.md").text
    assert written == script("list_commands").render(), "the options have changed: run `make docs`"


@EACH_PAGE
def test_the_program_accepts_every_command_that_a_page_shows(page_):
    wrong = []
    for where, command in so8t_commands(page_):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                build_parser().parse_args(words(command)[1:])
            except SystemExit:
                wrong.append(f"{where}: {command}: {said.getvalue().splitlines()[-1]}")
    assert not wrong


@EACH_PAGE
def test_every_subcommand_that_a_line_names_exists(page_):
    """`so8t WORD WORD` in back quotes, with the flags that follow."""
    known = parsers()
    wrong = []
    for span in page_.spans:
        if not re.match(r"so8t [a-z]", span):
            continue
        name, rest = "so8t", span.replace("\\|", "|").split()[1:]
        while rest and has_subcommands(known[name]):
            missing = [word for word in rest[0].split("|") if f"{name} {word}" not in known]
            if missing:
                wrong.append(f"{span}: {name} has no subcommand {', '.join(missing)}")
                break
            name, rest = f"{name} {rest[0].split('|')[0]}", rest[1:]
        else:
            flags = {word.partition("=")[0] for word in rest if word.startswith("-")}
            wrong += [f"{span}: {name} has no option {flag}" for flag in flags - {*options(known[name]), "--help"}]
    assert not wrong


def has_subcommands(parser: argparse.ArgumentParser) -> bool:
    return any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)


def options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name not in ("-h", "--help")]


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("docs/speed.md", "so8t bench run"),
        ("docs/profile.md", "so8t bench profile"),
        ("docs/trace.md", "so8t trace"),
    ],
)
def test_a_table_of_options_has_all_of_them(path, command):
    listed = {flag for cells in page(path).table("option") for flag in flags_in(cells[0])}
    assert listed == set(options(parsers()[command]))


# --- flags, environment variables, endpoints ---------------------------------------------------


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))


def cpp_options() -> set[str]:
    """Our options of llama-cli, llama-completion and llama-server."""
    found = set(re.findall(r'"(--so8t-[a-z-]+)"', code_of(r"llama_so8t/csrc/.*\.(cpp|h)$")))
    assert len(found) > 15
    return found


def test_every_option_of_llama_cpp_s_tools_is_in_a_table():
    rows = page("docs/guard.md").table("option")
    rows += [
        cells for name in ("audit", "escalations") for cells in page(f"docs/{name}.md").table("option of llama-server")
    ]
    listed = [flag for cells in rows for flag in re.findall(r"--so8t-[a-z-]+", cells[0])]
    assert sorted(set(listed)) == sorted(cpp_options())


@EACH_PAGE
def test_every_flag_exists(page_, pinned_tree):
    """In our programs, in llama.cpp's, or in the table of those that others have."""
    upstream = "".join(
        path.read_text(errors="replace")
        for folder in ("common", "tools", "examples", "tests")
        for path in sorted((pinned_tree / folder).rglob("*.cpp"))
    )
    theirs = set(re.findall(r'"(--?[a-z][\w-]*)"', upstream))
    ours = {flag for parser in parsers().values() for flag in [*options(parser), "--help"]} | cpp_options()
    ours |= set(re.findall(r'"(--no-so8t-[a-z-]+)"', code_of(r".*/so8t-args\.cpp$")))
    scripts = set(re.findall(r'"(--?[a-z][\w-]*)"', code_of(r"(tests|docs|ggml-patches)/.*\.(py|cpp)$")))
    named = {flag for flag in flags_in(page_.code) if flag.startswith("--")}
    assert named - theirs - ours - scripts - set(FOREIGN_FLAGS) == set()


def test_the_table_of_foreign_flags_names_only_what_is_used():
    used = {flag for page in pages() for flag in flags_in(page.code)}
    assert set(FOREIGN_FLAGS) - used == set()


FOREIGN_VARIABLES = {
    "HOME": "the user's",
    "XDG_CACHE_HOME": "told beside SO8T_CACHE_DIR",
    "ASAN_OPTIONS": "told beside SO8T_ASAN_OPTIONS",
    "OMP_NUM_THREADS": "set for the tests by themselves",
    "NO_LOCAL_GGUF": "set for upstream's converter while it is imported",
}
"""Variables that the code reads or sets and docs/env-vars.md gives no row of its own."""


def variables_of_the_code() -> set[str]:
    patterns = {
        r"(llama_so8t|tests|docs|ggml-patches)/.*\.py$": (
            r'environ(?:\.\w+)?[\[(]\s*"([A-Z][A-Z0-9_]+)"',
            r'getenv\(\s*"([A-Z][A-Z0-9_]+)"',
            r'ENVIRONMENT_VARIABLE = "([A-Z0-9_]+)"',
        ),
        r"(cmake/.*|CMakeLists.txt|tests/cpp/CMakeLists.txt)$": (r"ENV\{([A-Z][A-Z0-9_]+)\}",),
        r"(llama_so8t/csrc/.*|ggml-patches/.*\.patch)$": (
            r'getenv\(\s*"([A-Z][A-Z0-9_]+)"',
            r'"(LLAMA_ARG_SO8T_[A-Z_]+)"',
            r'"(OTEL_[A-Z_]+)"',
        ),
    }
    return {name for files, regexes in patterns.items() for r in regexes for name in re.findall(r, code_of(files))}


def test_every_environment_variable_has_a_row_and_the_reverse():
    rows = page("docs/env-vars.md").table("variable")
    documented = {name for cells in rows for name in re.findall(r"[A-Z][A-Z0-9_]+", cells[0])}
    read = variables_of_the_code()
    assert len(read) > 15
    assert read - documented - set(FOREIGN_VARIABLES) == set()
    assert {name for name in documented - read if not name.startswith("GGML_")} == set()
    assert set(FOREIGN_VARIABLES) <= read


def test_the_row_of_so8t_require_names_each_requirement():
    (row,) = (cells for cells in page("docs/env-vars.md").table("variable") if cells[0] == "SO8T_REQUIRE")
    asked = set(re.findall(r'\babsent\(\s*"(\w+)"', code_of(r"tests/")))
    assert len(asked) >= 7
    assert set(re.findall(r"`(\w+)`", row[2])) == asked


def test_each_option_has_the_environment_variable_of_its_name():
    names = {option[2:].upper().replace("-", "_") for option in cpp_options()}
    assert {f"LLAMA_ARG_{name}" for name in names} == {
        name for name in variables_of_the_code() if name.startswith("LLAMA_ARG_SO8T_")
    }


@EACH_PAGE
def test_every_environment_variable_that_a_page_names_exists(page_, pinned_tree):
    named = set(re.findall(r"\b(?:SO8T|LLAMA|GGML)_[A-Z][A-Z0-9_]*\b", page_.code))
    upstream = "".join(
        path.read_text(errors="replace")
        for folder in ("common", "tools", "src", "ggml")
        for path in (pinned_tree / folder).rglob("*")
        if path.suffix in (".cpp", ".c", ".h", ".txt", ".cu", ".cuh")
    )
    known = code_of("") + upstream
    assert {name for name in named if not re.search(rf"\b{name}\b", known)} == set()


def endpoints_of_the_code() -> set[str]:
    """ "GET /so8t/audit" of every route; ids are "ID"."""
    routes = re.findall(r'http\.(get|post)\(\s*"([^"]+)"', code_of(r"llama_so8t/csrc/server/"))
    assert len(routes) >= 7
    # llama.cpp's routes of OpenAI's format have names without /v1 too
    routes = [(method, path) for method, path in routes if path.startswith(("/so8t", "/v1"))]
    return {f"{method.upper()} {re.sub(r':[a-z]+', 'ID', path)}" for method, path in routes}


def test_every_endpoint_has_a_row_and_the_reverse():
    section = page("docs/guard.md").section("Endpoints")
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    documented = {f"{m} {path}" for row in rows for m, path in re.findall(r"`(GET|POST) ([\w/]+)", row)}
    assert documented == endpoints_of_the_code()


@EACH_PAGE
def test_every_endpoint_that_a_page_names_exists(page_):
    known = {endpoint.split()[1] for endpoint in endpoints_of_the_code()}
    text = "\n".join([page_.code, *(block.text for block in page_.blocks)])
    named = set(re.findall(r"(?<![\w.])(?:/server/[ab])?(/so8t/[\w/]+|/v1/moderations)", text))
    assert {path.removesuffix("/esc").rstrip("/") for path in named} - known == set(), "esc begins an id"


def test_every_metric_has_a_row_and_the_reverse():
    rows = page("docs/guard.md").table("metric")
    documented = {name for cells in rows for name in re.findall(r"llamacpp:so8t_(\w+)", cells[0])}
    counted = set(re.findall(r'(?:metric|sent)\("(\w+)"', code_of(r"llama_so8t/csrc/server/")))
    assert len(counted) >= 8
    assert documented == counted
    assert set(re.findall(r"llamacpp:so8t_(\w+)", all_documentation())) <= counted


# --- policy, audit log -------------------------------------------------------------------------


def policy_rows() -> dict[str, str]:
    """Key of a policy file -> its flag, by the rows of so8t-policy-keys.h."""
    rows = re.findall(r'^ {4}\{"([a-z_]+)", "--(so8t-[a-z-]+)",', code_of(r".*/so8t-policy-keys\.h$"), re.M)
    assert len(rows) == len(dict(rows)) > 5
    return {key: f"--{flag}" for key, flag in rows}


def test_the_table_of_the_guard_page_has_every_key_of_a_policy_with_its_flag():
    rows = page("docs/guard.md").table("option")
    listed = {cells[1].strip("`"): flags_in(cells[0]) for cells in rows if cells[1] != "-"}
    assert listed == {key: {flag} for key, flag in policy_rows().items()}


def test_the_policy_file_of_the_guard_page_has_every_key():
    example = next(json.loads(block.text) for block in page("docs/guard.md").blocks if '"holdback"' in block.text)
    assert set(example) == set(policy_rows())


def test_every_event_of_the_audit_log_is_in_its_table_and_in_the_help():
    """tests/audit/test_audit_events.py holds the same list against C++."""
    listed = {cells[0] for cells in page("docs/audit.md").table("event")}
    assert listed == {event.value for event in Event}
    show = parsers()["so8t audit show"]
    text = next(action.help for action in show._actions if "--event" in action.option_strings)
    assert {name for name in listed if not re.search(rf"\b{name}\b", text)} == set()


def test_every_finding_of_verify_is_in_its_table():
    listed = {name for cells in page("docs/audit.md").table("finding") for name in cells[0].split(", ")}
    assert listed == set(re.findall(r'Finding\(\s*"([a-z]+)"', code_of(r"llama_so8t/audit/.*\.py$")))


# --- make, patches, code -----------------------------------------------------------------------


def make_targets() -> dict[str, bool]:
    """Target -> whether `make help` shows it."""
    found = re.findall(r"^([a-z][\w-]*):[^=\n]*?(## .*)?$", sources()["Makefile"], re.M)
    return {name: bool(text) for name, text in found}


@EACH_PAGE
def test_every_make_target_exists(page_):
    named = re.findall(r"(?:^|[\s;&(])make ([a-z][\w-]*)", page_.code, re.M)
    assert set(named) - set(make_targets()) == set()


def test_every_make_target_is_documented():
    documented = {name for page in pages() for name in re.findall(r"make ([a-z][\w-]*)", page.code)}
    assert {name for name, shown in make_targets().items() if shown} - documented == set()


def test_pre_commit_runs_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for repo in hooks for hook in repo["hooks"]] == ["make lint"]


def patch_lines(pattern: str) -> int:
    """Lines of the patches that match, file names left out."""
    text = "".join(path.read_text() for path in sorted((ROOT / "ggml-patches").glob("*.patch")))
    return len([line for line in text.splitlines() if re.match(pattern, line) and not re.match(r"(\+\+\+|---) ", line)])


@pytest.mark.parametrize(
    ("path", "added", "removed"),
    [
        ("README.md", r"adds? about (\d+) lines", r"replaces? (\d+)"),
        ("README.ja.md", r"追加は約 (\d+) 行", r"置き換えは (\d+) 行"),
        ("docs/architecture.md", r"adds? about (\d+) lines", r"replaces? (\d+)"),
        ("docs/updating-llama-cpp.md", r"adds? about (\d+) lines", r"replaces? (\d+)"),
        ("ggml-patches/README.md", r"adds? about (\d+) lines", r"replaces? (\d+)"),
    ],
)
def test_the_patches_are_as_large_as_a_page_says(path, added, removed):
    """Added lines are said in tens, replaced ones exactly."""
    text = page(path).text
    assert [int(n) for n in re.findall(added, text)] == [pytest.approx(patch_lines(r"\+"), abs=9)]
    assert [int(n) for n in re.findall(removed, text)] == [patch_lines("-")]


def test_the_table_of_patches_has_each_of_them():
    listed = {cells[0] for cells in page("ggml-patches/README.md").table("patch")}
    assert listed == {path.stem for path in (ROOT / "ggml-patches").glob("*.patch")}


@EACH_PAGE
def test_blocks_of_json_and_python_are_read_by_their_languages(page_):
    for block in page_.blocks:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("llama_so8t"):
                    module = importlib.import_module(node.module)
                    assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], block.where
