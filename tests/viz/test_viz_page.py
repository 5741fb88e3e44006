"""Pages hold everything themselves, escape everything, and survive hostile text."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from alignlab.core.errors import ConfigError, DataError, RunError
from alignlab.stats.interval import Interval, wilson
from alignlab.viz.figures import cost_bars, stage_bars
from alignlab.viz.markup import Badge, emphasis, number, render
from alignlab.viz.page import Page

HOSTILE = (
    '</script><script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)> "\' & <!-- figure-slot'
)


class Reader(HTMLParser):
    """Elements with their attributes, balance of tags, and the text outside scripts and styles."""

    VOID = frozenset({"meta", "br", "link", "img", "base", "input"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def full_page(text: str) -> Page:
    figure = stage_bars({text: {text: wilson(3, 9)}})
    return (
        Page(text, text)
        .heading(text)
        .heading(text, level=3)
        .text(text)
        .key_numbers([(text, text, text, text), ("rate", 0.5, wilson(3, 9), "better")])
        .figure(figure, text)
        .table([text, "n"], [[text, 1], [text, None]], caption=text)
        .side_by_side([{"title": text, "columns": [(text, text), ("b", "c")]}])
        .details(text, text)
        .details(text, Page("").figure(cost_bars({text: 1.0}), text), is_open=True)
        .heading("Second")
        .heading("Third")
        .footer(text)
    )


def without_plotly(document: str) -> str:
    assert document.count(get_plotlyjs()) == 1
    return document.replace(get_plotlyjs(), "")


def test_nothing_comes_from_outside() -> None:
    document = without_plotly(full_page("plain").html())
    assert not re.search(r"https?:|//[a-z]", document.replace("// Drawn", ""))
    reader = Reader(document)
    for tag, attributes in reader.elements:
        assert tag not in ("link", "img", "iframe", "base", "object", "embed")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in document
    assert "url(" not in document
    policy = [m["content"] for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert policy[0].startswith("default-src 'none'")


def test_hostile_text_stays_text() -> None:
    document = without_plotly(full_page(HOSTILE).html())
    reader, tame = Reader(document), Reader(without_plotly(full_page("tame").html()))
    assert [tag for tag, _ in reader.elements] == [tag for tag, _ in tame.elements]
    assert reader.open == []
    assert reader.text.count(HOSTILE) >= 12
    for attributes in reader.all("script"):
        assert set(attributes) <= {"type", "id"}


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_any_text_leaves_the_structure_alone(text: str) -> None:
    page = Page(text).text(text).table([text], [[text]]).details(text, text).side_by_side(
        [{"title": text, "columns": [(text, text)]}]
    )  # fmt: skip
    reader = Reader(page.html())
    assert reader.open == []
    assert [tag for tag, _ in reader.elements if tag in ("script", "img", "a", "b", "i")] == []


def test_figures_are_found_by_their_boxes() -> None:
    document = without_plotly(full_page(HOSTILE).html())
    reader = Reader(document)
    boxes = [a["data-spec"] for a in reader.all("div") if a.get("class") == "canvas"]
    assert boxes == ["figure-0", "figure-1"]
    specs = re.findall(r'<script type="application/json" id="(figure-\d)">(.*?)</script>', document, re.DOTALL)
    assert [name for name, _ in specs] == boxes
    kinds = [json.loads(body)["data"][0].get("orientation", "v") for _, body in specs]
    assert kinds == ["v", "h"]  # the first is the bars by stage, the second the costs inside details
    labels = {a["aria-label"] for a in reader.all("div") if a.get("role") == "img"}
    assert labels == {HOSTILE}


def test_no_figure_no_script() -> None:
    document = Page("t").text("short").html()
    assert "<script" not in document
    assert len(document) < 12_000


def test_phone_and_dark() -> None:
    document = Page("t").table(["a"], [["b"]]).html()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in document
    assert "@media (prefers-color-scheme: dark)" in document
    assert "@media (max-width: 560px)" in document
    assert 'class="tablebox" tabindex="0"' in document


def test_contents_link_to_unique_headings() -> None:
    reader = Reader(Page("t").heading("Cost!").heading("cost").heading("→").html())
    anchors = [a["id"] for a in reader.all("h2")]
    assert anchors == ["cost", "cost-more", "section"]
    assert [a["href"] for a in reader.all("a")] == [f"#{name}" for name in anchors]
    assert not Reader(Page("t").heading("a").heading("b").html()).all("a")


def test_text_makes_paragraphs() -> None:
    assert Page("t").text("one\nstill\n\n two").html().count("<p>") == 2
    assert "<p>a <strong>b</strong></p>" in Page("t").text(emphasis("a **b**")).html()


def test_numbers_and_badges() -> None:
    document = Page("t").table(["x", "v"], [[wilson(5, 10), Badge("worse")], [None, Badge("odd")]]).html()
    assert '<td class="num">0.500 <span class="limits">[0.237, 0.763]</span></td>' in document
    assert '<span class="badge bad">▼ worse</span>' in document
    assert '<span class="badge even">odd</span>' in document
    card = Page("t").key_numbers([("r", Interval(0.1, -math.inf, 0.2, 1500), None, None)]).html()
    assert "0.100" in card
    assert "[–, 0.200]" in card


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.12345, "0.123"), (-0.5, "−0.500"), (1.0432, "1.043"), (88.26, "88.3"), (1234567.8, "1,234,568"),
        (0.00042, "0.0004"), (1.5e-7, "1.5e−07"), (math.nan, "–"), (math.inf, "–"), (12000, "12,000"), (-3, "−3"),
    ],
)  # fmt: skip
def test_number_formats(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**a** and *b*", "<strong>a</strong> and <em>b</em>"),
        ("`x < **y**`", "<code>x &lt; **y**</code>"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("a ** b", "a ** b"),
        ("<b>**x**</b>", "&lt;b&gt;<strong>x</strong>&lt;/b&gt;"),
    ],
)
def test_emphasis(text: str, expected: str) -> None:
    assert emphasis(text).html == expected


def test_plain_values() -> None:
    assert render(True) == "yes"
    assert render("**a**") == "**a**"


def test_save_is_whole_or_nothing(tmp_path: Path) -> None:
    path = Page("t").text("first").save(tmp_path / "report.html")
    assert "first" in path.read_text(encoding="utf-8")
    with pytest.raises(RunError):
        Page("t").save(tmp_path / "missing" / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_same_input_same_page() -> None:
    assert full_page("x").html() == full_page("x").html()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Page("t").table(["a", "b"], [["x"]]), "row 0 of the table has 1 cells for 2 columns"),
        (lambda: Page("t").key_numbers([]), "numbers is empty"),
        (lambda: Page("t").side_by_side([{"title": "x"}]), "example 0 needs"),
    ],
)
def test_bad_data(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_bad_level() -> None:
    with pytest.raises(ConfigError, match="level is 1"):
        Page("t").heading("x", level=1)
