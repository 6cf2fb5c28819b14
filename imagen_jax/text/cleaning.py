"""Cleaning of captions before the tokenizer: none, or that of the DeepFloyd IF weights.

The IF cleaner lower-cases captions and removes what web pages leave in alt texts: addresses,
markup, file names, article numbers, shop phrases. It is applied twice, as in DeepFloyd IF, since
its output may hold new matches. Its rules are lists of regular expressions whose order matters. The
reference is `IFPipeline._clean_caption` of diffusers, with which the tests compare.
"""

from __future__ import annotations

import functools
import html
import re
import urllib.parse
from collections.abc import Callable

from imagen_jax.config import CLEANINGS
from imagen_jax.errors import UserError

# Recorded in manifests; raise the number when a rule changes.
_VERSIONS = {"none": "none", "if": "if-1"}

_DOMAINS = "com|co|ru|net|org|edu|gov|it"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
# From CJK strokes to the unified ideographs, with the blocks between them.
_IDEOGRAPHS = "\u31c0-\u9fff"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)

_BEFORE_MARKUP = (
    ("<person>", "person"),
    *(
        rf"\b(?:{scheme}:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+\.(?:{_DOMAINS})[\w/-]*\b/?(?!@))"
        for scheme in ("https?", "www")
    ),
)
_AFTER_MARKUP = (
    r"@\w+\b",  # user names
    f"[{_IDEOGRAPHS}]+",
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    "&quot;?",
    "&amp",
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    r"\d:\d\d\s+$",
    (r"\\n", " "),  # a line feed as two characters
    r"#\d{1,3}\b",
    r"#\d{5,}\b",
    r"\b\d{6,}\b",
    rf"\S+\.(?:{_FILES})",
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WORD_JOINERS = re.compile("[-_]")
_AFTER_UNESCAPING = (
    r"\b[a-zA-Z]{1,3}\d{3,15}\b",  # jc6640
    r"\b[a-zA-Z]+\d+[a-zA-Z]+\b",  # jc6640vc
    r"\b\d+[a-zA-Z]+\d+\b",  # 6640vc231
    r"(?:worldwide\s+)?(?:free\s+)?shipping",
    r"(?:free\s)?download(?:\sfree)?",
    r"\bclick\b\s(?:for|on)\s\w+",
    rf"\b(?:{_FILES})(?:\simages?)?",
    r"\bpage\s+\d+\b",
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    r"\b\d+\.?\d*[xх×]\d+\.?\d*\b",  # sizes
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    r"^['_,\-:;]",
    r"['_,\-:+]$",
    r"^\.\S+$",
)


def version(name: str) -> str:
    """The name and version of a cleaner, for manifests. Raises UserError for an unknown one."""
    if name not in CLEANINGS:
        raise UserError(f"text.cleaning is {name!r}: use one of {', '.join(CLEANINGS)}")
    return _VERSIONS[name]


def clean(caption: str, name: str) -> str:
    """The cleaned caption.

    Args:
      caption: any text.
      name: "none" or "if".

    Raises:
      UserError: an unknown cleaner, or one whose libraries are not installed.
    """
    if version(name) == "none":
        return caption
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    markup_text, fix_text = _libraries()
    caption = urllib.parse.unquote_plus(caption).strip().lower()
    caption = markup_text(_apply(_BEFORE_MARKUP, caption))
    caption = _apply(_AFTER_MARKUP, caption)
    # More than a few hyphens or underscores join words as in file names.
    if len(_WORD_JOINERS.findall(caption)) > 3:
        caption = _WORD_JOINERS.sub(" ", caption)
    caption = html.unescape(html.unescape(fix_text(caption)))
    return _apply(_AFTER_UNESCAPING, caption).strip()


def _apply(rules: tuple[str | tuple[str, str], ...], text: str) -> str:
    """Replaces all matches of each pattern in turn; matches of a plain pattern are deleted."""
    for rule in rules:
        pattern, replacement = (rule, "") if isinstance(rule, str) else rule
        text = re.sub(pattern, replacement, text)
    return text


@functools.cache
def _libraries() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Two functions: the visible text of markup, and the repair of wrongly decoded characters."""
    try:
        import bs4
        import ftfy
    except ImportError as error:
        raise UserError(
            "text.cleaning='if' needs ftfy and beautifulsoup4: pip install 'imagen-jax[cleaning]'"
        ) from error
    import warnings

    # A caption that looks like a file name or an address is still a caption.
    warnings.filterwarnings("ignore", category=bs4.MarkupResemblesLocatorWarning)
    return lambda text: bs4.BeautifulSoup(text, features="html.parser").text, ftfy.fix_text
