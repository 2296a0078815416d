"""Whatever a string holds, a page shows it and nothing more."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.report.markup import Markup, element, escape, fragment


class Reader(HTMLParser):
    """What a parser sees: the elements, the values of attributes, the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = st.one_of(
    st.text(),
    st.sampled_from(
        ["</p><script>alert(1)</script>", '" onload="x', "'><img src=x>", "&lt;", "&#0;", "<!--",
         "]]>", "\x00\x1b[31m", "\ud800", "\uffff", "\U0001ffff"]
    ),
)  # fmt: skip


def is_legal(character: str) -> bool:
    code = ord(character)
    is_control = (code < 32 and character not in "\t\n\r") or 127 <= code < 160
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return not (is_control or is_noncharacter or 0xD800 <= code <= 0xDFFF)


@given(HOSTILE)
def test_any_string_is_shown_as_it_is_and_makes_no_element(text: str) -> None:
    page = element("p", text, title=text)
    shown = "".join(each if is_legal(each) else "\ufffd" for each in text)
    reader = Reader(page)
    assert reader.seen == [("p", [("title", shown)])]
    assert reader.text == shown
    page.encode()


def test_elements_hold_strings_markup_lists_and_numbers() -> None:
    cells = [element("td", number) for number in (1, 2000)]
    assert element("tr", "a & b", cells, None, class_="x") == (
        '<tr class="x">a &amp; b<td>1</td><td>2,000</td></tr>'
    )


def test_markup_put_into_a_string_is_escaped_again() -> None:
    inner = element("b", "x")
    assert element("p", f"see {inner}") == "<p>see &lt;b&gt;x&lt;/b&gt;</p>"
    assert fragment(inner) == "<b>x</b>"
    assert isinstance(fragment("<"), Markup)


@pytest.mark.parametrize(
    ("attributes", "written"),
    [
        ({"class_": "a"}, ' class="a"'),
        ({"aria_label": "a"}, ' aria-label="a"'),
        ({"viewBox": "0 0 1 1"}, ' viewBox="0 0 1 1"'),
        ({"x": 1.23456789}, ' x="1.23457"'),
        ({"open": True, "hidden": False, "id": None}, " open"),
    ],
)
def test_attributes_are_named_as_html_names_them(
    attributes: dict[str, str | float | bool | None], written: str
) -> None:
    assert element("i", **attributes) == f"<i{written}></i>"


def test_void_elements_have_no_end() -> None:
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_escaped_text_is_not_escaped_twice() -> None:
    assert fragment(escape("a < b")) == "a &lt; b"
