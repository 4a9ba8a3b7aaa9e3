"""The names of the format stand once: the C++ header is made from `format`, the document names every key."""

import re
from collections import Counter
from pathlib import Path

import pytest

from llama_so8t import format, format_header

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "llama_so8t/csrc/model/so8t-format.h"


def python_keys() -> dict[str, str]:
    keys = {name: value for name, value in vars(format.Keys).items() if name.isupper()}
    return {name: value.replace("{name}", "%s") for name, value in keys.items()}


def test_the_header_is_the_one_that_is_made():
    assert format_header.header() == HEADER.read_text(), "run `make format-header`"


def test_the_header_has_every_key_and_row():
    text = format_header.header()
    defined = dict(re.findall(r'#define SO8T_KV_(\w+)\s+"([^"]+)"', text))
    assert len(python_keys()) == 34 and defined == python_keys()
    assert int(re.search(r"#define SO8T_FORMAT_VERSION (\d+)", text)[1]) == format.FORMAT_VERSION
    rows = re.search(r"so8t_head_key_rows\[\] = \{(.*?)\n\};", text, re.DOTALL)[1]
    assert dict(re.findall(r'\{"(\w+)", (\d)\}', rows)) == {k.field: str(k.since) for k in format.HEAD_KEYS.values()}
    for site in format.SITES.values():
        assert f"SO8T_SITE_{site.name.upper()}," in text
        for rotation in site.rotations:
            row = (
                f'{{"{rotation.name}", SO8T_GENERATOR_{rotation.generator.upper()}, SO8T_PER_{rotation.per.upper()}}},'
            )
            assert row in text
            for linear in (*rotation.before, *rotation.after):
                weight = f"{format.LINEAR_NAMES[linear]}.weight"
                assert f'{{"{weight}", SO8T_GENERATOR_{rotation.generator.upper()}}},' in text
    assert len(re.findall(r'{"\w+\.weight", SO8T_GENERATOR_', text)) == 12
    assert all(f'X("{family}", ' in text for family in format.FAMILIES)
    assert all(
        f"X({form.activation}, {form.form.upper()}, " in text for form in format.HEAD_FORMS.values() if form.stem
    )


def test_every_key_of_a_head_is_a_row_and_a_field():
    named = {key for name, key in vars(format.Keys).items() if name.startswith("HEAD_") and name != "HEAD_PREFIX"}
    assert named == {key.of("{name}") for key in format.HEAD_KEYS.values()}
    assert set(format.HEAD_KEYS) - {"form"} == set(format.HeadSpec.__dataclass_fields__) - {"name"}
    assert max(key.since for key in format.HEAD_KEYS.values()) == format.FORMAT_VERSION


@pytest.mark.parametrize("name", ["a-b", "8th", "R_safe[0]", ""])
def test_a_name_that_c_cannot_have_is_no_header(name, monkeypatch):
    site = format.Site(name, (), ())
    monkeypatch.setattr(format, "SITES", {**format.SITES, name: site})
    with pytest.raises(ValueError, match="expected letters, digits and _"):
        format_header.header()


def test_the_rows_of_a_site_belong_together():
    rotations = [rotation for site in format.SITES.values() for rotation in site.rotations]
    generators = [name for site in format.SITES.values() for name in site.generator_names]
    for names in (generators, [rotation.name for rotation in rotations]):
        assert Counter(names).most_common(1)[0][1] == 1
    for site in format.SITES.values():
        assert {rotation.generator for rotation in site.rotations} == set(site.generator_names)
        assert all(rotation.per in format.PER for rotation in site.rotations)
    # a product of rotations before a linear map is one of blocks, or one of groups of heads
    for linear in {linear for rotation in rotations for linear in rotation.before}:
        assert len({rotation.per for rotation in rotations if linear in rotation.before}) == 1
    assert {rotation.per for rotation in rotations if rotation.before} <= {format.PER_BLOCK, format.PER_GROUP}
    assert {rotation.per for rotation in rotations if rotation.after} <= {format.PER_HEAD, format.PER_HEAD_KV}


def test_the_format_page_names_every_key():
    page = (ROOT / "docs/format.md").read_text()
    missing = [key for key in python_keys().values() if key.replace("%s", "NAME") not in page]
    # head_kv_representation and the like stand on lines of their own
    assert not missing


def test_the_format_page_has_every_site_family_and_form():
    """Tensors in the table of tensors, sites in the table of what is folded, families and forms in that of the keys."""
    page = (ROOT / "docs/format.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    tensors = {name for row in cells for name in expanded(row[0])}
    order = [name for site in format.SITES.values() for name in site.generator_names]
    assert f"one behind the other: {', '.join(order[:-1])} and {order[-1]}" in " ".join(page.split())
    for site in format.SITES.values():
        names = {format.Tensors.GENERATORS.format(layer="N")}
        names |= {format.Tensors.GENERATOR.format(layer="N", name=name) for name in site.generator_names}
        names |= {format.Tensors.ROTATION.format(layer="N", name=name) for name in site.rotation_names}
        assert names - tensors == set()
    assert set(format.SITES) - {row[0] for row in cells} == set()
    meaning = {row[0]: set(re.findall(r"\w+", row[-1])) for row in cells}
    assert set(format.FAMILIES) - meaning[format.Keys.BASE_ARCHITECTURE] == set()
    for names, key in (
        (format.HEAD_FORMS, format.Keys.HEAD_ACTIVATION),
        (format.FORMS, format.Keys.HEAD_FORM),
        (format.LINKS, format.Keys.HEAD_LINK),
        (format.TAP_NORMS, format.Keys.HEAD_TAP_NORM),
        (format.RULES, format.Keys.HEAD_RULE),
        (format.AGGREGATIONS, format.Keys.HEAD_AGGREGATION),
        (format.PROMPT_AGGREGATIONS, format.Keys.HEAD_PROMPT_AGGREGATION),
    ):
        assert set(names) - meaning[key.format(name="NAME")] == set()


def test_the_format_page_has_the_type_and_version_of_every_key_of_a_head():
    page = (ROOT / "docs/format.md").read_text()
    for key in format.HEAD_KEYS.values():
        (row,) = re.findall(rf"^\| {re.escape(key.of('NAME'))} \| (\S+) \| (.*) \|$", page, re.MULTILINE)
        assert row[0] == key.type
        assert ("(version 2)" in row[1]) == (key.since == 2)


def expanded(name: str) -> list[str]:
    """ "a{b,c}d" -> ["abd", "acd"]"""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    return [name] if found is None else [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")]
