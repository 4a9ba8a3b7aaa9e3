"""The page: whole, from nowhere else, and hostile text is text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hand_made import SAFETY, two

from llama_so8t.format import ACTIONS, HeadSpec
from llama_so8t.tracing.page import render

HOSTILE = ["<script>alert(1)</script>", "\"' onmouseover='x", "</style></div>", "&lt;", "]]>", "\u202edlrow", "a\nb"]
VOID = {"meta", "path", "circle", "rect", "polyline", "br", "th", "td", "tr", "thead", "tbody"}


class Reader(HTMLParser):
    """Tags, attributes, and the text of the tokens."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.tokens = set(), [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        kinds = dict(attributes).get("class", "").split()
        if tag == "span" and "t" in kinds and "title" in dict(attributes):
            self.tokens.append((kinds, dict(attributes), ""))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] == ["div", "span"]:
            self.tokens[-1] = (*self.tokens[-1][:2], self.tokens[-1][2] + data)


@pytest.fixture
def hostile(make_trace):
    head = HeadSpec("safety", ("<b>safe", '"unsafe"&'), ("allow", "refuse"), (0.5, 0.9))
    unsafe = [0.0, 0.95, 0.1, 0.2, 0.3, 0.4, 0.97]
    return make_trace(HOSTILE, 3, {head: two(unsafe)}, name="<img src=x onerror=alert(1)>")


def test_hostile_text_stays_text(hostile):
    reader = Reader(render(hostile))
    assert not reader.tags & {"script", "img", "b2", "iframe", "object", "link"}
    shown = [text for _, _, text in reader.tokens]
    assert shown == [*HOSTILE[:5], "⟨U+202E⟩dlrow", "a\nb"]
    names = {name for _, name, _ in reader.attributes}
    assert names <= {
        *("lang", "charset", "http-equiv", "content", "name", "class", "href", "id", "style", "title", "role"),
        *("aria-label", "viewbox", "d", "x", "y", "cx", "cy", "r", "width", "height", "points", "stroke", "fill"),
        "text-anchor",
    }
    assert reader.open == []


def test_nothing_comes_from_elsewhere(hostile):
    page = render(hostile)
    reader = Reader(page)
    assert all(value.startswith("#") for _, name, value in reader.attributes if name == "href")
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?:|//[a-z]", page.replace("</", ""))


def test_tokens_carry_their_risk_and_what_happens_there(make_trace):
    probs = two([0.0, 0.95, 0.25, 0.95, 0.95, 0.5])
    probs[5] = np.nan
    reader = Reader(render(make_trace([" a"] * 6, 2, {SAFETY: probs})))
    kinds = [set(kinds) - {"t"} for kinds, _, _ in reader.tokens]
    assert kinds == [{"u"}, {"a", "x"}, set(), {"a"}, {"a", "x"}, {"nan"}]
    assert [attributes.get("style") for _, attributes, _ in reader.tokens] == [
        None, "--r:0.95", "--r:0.25", "--r:0.95", "--r:0.95", None,
    ]  # fmt: skip
    assert "unsafe 0.250" in reader.tokens[2][1]["title"] and "answer 0, id 102" in reader.tokens[2][1]["title"]
    assert "refuse: answer at token 2, unsafe 0.950" in reader.tokens[4][1]["title"]


def test_every_acting_label_has_a_threshold_line(make_trace):
    heads = {
        SAFETY: two(np.full(8, 0.5)),
        HeadSpec("topic", ("no", "war", "fraud"), ACTIONS, (0.5, 0.25, 0.75)): np.full((8, 3), 1 / 3),
        HeadSpec("kind", ("x", "y"), ("allow", "allow"), (0.5, 0.5)): two(np.full(8, 0.5)),
    }  # fmt: skip
    page = render(make_trace([" a"] * 8, 4, heads))
    lines = re.findall(r'class="threshold" stroke="[^"]+" d="M34 ([\d.]+)H', page)
    assert [float(y) for y in lines] == pytest.approx([162 - 144 * t for t in (0.9, 0.25, 0.75)], abs=0.06)
    assert page.count("<svg") == 3
    assert page.count('<div class="text">') == 4  # two parts of the two heads that can act


def test_a_long_text_makes_a_page_of_bounded_curves(make_trace):
    n = 20_000
    page = render(make_trace([" a"] * n, n - 5, {SAFETY: two(np.linspace(0, 1, n))}))
    assert max(len(points.split()) for points in re.findall(r'points="([^"]+)"', page)) <= 1500
