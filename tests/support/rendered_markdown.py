"""Markdown rendered by two independent renderers, to see what acts in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import markdown
from markdown_it import MarkdownIt

ATTACKS = {
    "image": "![](http://x.org/y.png)",
    "link": "[text](http://x.org)",
    "reference link": "[text][1]\n\n[1]: http://x.org",
    "autolink": "<http://x.org>",
    "bare link": "see http://x.org and www.x.org or me@x.org",
    "tag": "<script>alert(1)</script><img src=http://x.org/y.png>",
    "comment": "a <!-- b",
    "character reference": "&lt;b&gt; &amp; &#60;",
    "code span": "a `code` b",
    "code fence": "```\ncode\n```\n# after",
    "tilde fence": "~~~\ncode\n~~~\n![](http://x.org)",
    "backticks": "````` \n![](http://x.org)\n`````",
    "heading": "# heading",
    "underlined heading": "heading\n===",
    "rule": "text\n---\ntext",
    "list": "- item\n* item\n1. item",
    "quotation": "> quoted",
    "indented code": "    code",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~",
    "table": "a | b\n--- | ---\n1 | 2",
    "pipes": "|a|b|\\|",
    "escaped pipe": "a\\|![](http://x.org)",
    "line breaks": "a\nb\r\nc\u2028d\u0085e",
    "control characters": "a\x1b[31mb\x00c\x07\u202ed\ud800",
    "formula": "$x$ and $$y$$",
}
"""Kind -> text that acts in Markdown unless it is escaped."""
HIDDEN = set("\x1b\x00\x07\r\x85\u2028\u202e\ud800")
_EXPECTED_TAGS = {"p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "strong"}


def renderings(text: str) -> dict[str, str]:
    """Renderer -> HTML: CommonMark with GitHub's tables and strikethrough, and what TensorBoard uses."""
    github = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return {
        "markdown-it": github.render(text),
        "Python-Markdown": markdown.markdown(text, extensions=["tables", "fenced_code"]),
    }


def active_tags(html: str) -> set[str]:
    """Tags in rendered HTML other than those of paragraphs, code and tables."""
    return {tag for tag, _ in _elements(html)} - _EXPECTED_TAGS


def text_of(html: str) -> str:
    """The text that a reader sees, white space squeezed."""
    parser = _Collector()
    parser.feed(html)
    parser.close()
    return re.sub(r"\s+", " ", "".join(parser.text)).strip()


class _Collector(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.elements: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def _elements(html: str) -> list[tuple[str, dict]]:
    parser = _Collector()
    parser.feed(html)
    return parser.elements
