"""The exception for mistakes that the user can correct, and how it shows their values."""

from __future__ import annotations

import reprlib
from typing import Any


class UserError(ValueError):
    """A wrong input; the message names the value and the remedy.

    The command line tools print the message without a traceback and exit with status 2. Any other
    exception is a defect of this package and keeps its traceback.
    """


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 100


def brief(value: Any) -> str:
    """`repr(value)`, shortened: an error stays readable whatever a file holds."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
