"""Range checks of settings. Each raises UserError with the name and the value of the setting."""

from __future__ import annotations

import math
import re
from typing import Any

from imagen_jax.errors import UserError, brief


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name}={brief(value)} must be one of {', '.join(choices)}")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raises UserError unless `value` is at least `minimum` and finite."""
    if _is_number(value) and not value >= minimum:
        raise UserError(f"{name}={value} must be at least {minimum}")
    _check_finite(name, value)


def check_positive(name: str, value: float) -> None:
    """Raises UserError unless `value` is above 0 and finite."""
    if _is_number(value) and not value > 0:
        raise UserError(f"{name}={value} must be positive")
    _check_finite(name, value)


def check_unit_interval(name: str, value: float) -> None:
    """Raises UserError unless `value` lies in [0, 1]."""
    if _is_number(value) and not 0.0 <= value <= 1.0:
        raise UserError(f"{name}={value} must be in [0, 1]")


def check_path_name(what: str, name: Any) -> None:
    """Raises UserError unless `name` can be a part of file names on every system.

    Args:
      what: begins the message, such as "stages has the name".
      name: letters, digits, "_" and "-", at most 64 of them.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise UserError(
            f"{what} {brief(name)}: use 1 to 64 of the letters a-z and A-Z, digits, _ and -, since "
            "directories and files are named after it"
        )


def _check_finite(name: str, value: float) -> None:
    if _is_number(value) and not math.isfinite(value):
        raise UserError(f"{name}={value} must be finite")


def _is_number(value: Any) -> bool:
    """False for traced values, whose range is unknown while a program is traced."""
    return isinstance(value, (int, float))
