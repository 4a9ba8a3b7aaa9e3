"""The options of the guard and the audit log in `llama-server --help`: the pages say what the program says."""

import re
import subprocess

import pytest
from pages import page


@pytest.fixture(scope="module")
def options(runtime) -> dict[str, tuple[str, str]]:
    """Flag -> (what follows it, its whole help on one line)."""
    text = subprocess.run([runtime / "llama-server", "--help"], capture_output=True, text=True, check=True).stdout
    found = {}
    for paragraph in re.split(r"\n(?=-)", text):
        if paragraph.startswith("--so8t-"):
            head, _, rest = " ".join(paragraph.split()).partition(" SO8T: ")
            flag, _, hint = head.partition(", --no-")[0].partition(" ")
            found[flag] = hint, rest
    assert len(found) > 12
    return found


def documented(path: str, column: str) -> dict[str, list[str]]:
    """Flag -> cells of its row, of the rows of one flag."""
    rows = page(path).table(column)
    return {re.match("`(--[a-z0-9-]+)", cells[0])[1]: cells for cells in rows if "others" not in cells[0]}


def test_the_table_of_the_guard_page_has_the_values_and_defaults_of_the_help(options):
    rows = {flag: cells for flag, cells in documented("docs/guard.md", "option").items() if cells[1] != "-"}
    assert len(rows) == 15
    for flag, (option, _, _, default) in rows.items():
        hint, text = options[flag]
        assert option == f"`{flag} {hint.strip('{}').replace(',', '|') if hint[0] == '{' else hint}`"
        assert re.search(r"\(default: (.*)\) \(env: \w+\)$", text)[1] == default, flag


def test_the_table_of_the_audit_page_has_the_flags_of_the_help(options):
    rows = documented("docs/audit.md", "option of llama-server")
    assert set(rows) == {flag for flag in options if flag.startswith("--so8t-audit")}


def test_the_help_of_each_option_names_the_variable_of_its_name(options):
    for flag, (_, text) in options.items():
        assert text.endswith(f"(env: LLAMA_ARG_{flag[2:].upper().replace('-', '_')})")


def test_the_help_says_that_m_is_a_million(options):
    assert "K, M and G: 10^3, 10^6 and 10^9" in options["--so8t-audit-max-size"][1]
