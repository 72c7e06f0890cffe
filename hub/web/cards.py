"""A model's card as HTML that cannot hurt its reader.

The author of a card is a stranger to the hub. HTML in it is shown as text, links lead to web pages and mail
addresses only, say that they lead away (``rel``), and pictures are replaced by their description: none is
fetched, neither from the hub nor from elsewhere. Headings begin below those of the page around them.
"""

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

HEADING_SHIFT = 2
MAX_HEADING = 6
REL = "noopener noreferrer nofollow ugc"
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_AWAY = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_READER = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])


def render_card(text: str) -> Markup:
    """The HTML of a card's Markdown, without the metadata block that may stand at its head.

    >>> render_card("# Digits <script>")
    Markup('<h3>Digits &lt;script&gt;</h3>\\n')
    """
    tokens = _READER.parse(_FRONT.sub("", text, count=1))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(MAX_HEADING, int(token.tag[1:]) + HEADING_SHIFT)}"
        if token.type in ("td_open", "th_open"):
            _align(token)
        if token.children:
            token.children = _tame(token.children)
    return Markup(_READER.renderer.render(tokens, _READER.options, {}))  # noqa: S704  # html=False: all escaped


def _align(token: Token) -> None:
    """Alignment as a class: the page's policy refuses style attributes."""
    style = str(token.attrs.pop("style", ""))
    if style.endswith("right"):
        token.attrSet("class", "num")


def _tame(children: Sequence[Token]) -> list[Token]:
    tamed, leads_away = [], True
    for token in children:
        if token.type == "image":
            told = Token("text", "", 0)
            told.content = f"[{token.content or 'picture'}]"
            tamed.append(told)
            continue
        if token.type == "link_open":
            href = str(token.attrs.get("href", ""))
            leads_away = _AWAY.match(href) is not None
            token.attrs = {"href": href, "rel": REL} if leads_away else {}
        if token.type in ("link_open", "link_close") and not leads_away:
            token.tag = "span"
        tamed.append(token)
    return tamed
