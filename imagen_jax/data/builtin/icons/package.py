"""JSON files of a set, and what the `package.json` of npm says of its origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagen_jax.data.builtin.icons.icon_set import Origin
from imagen_jax.errors import UserError

MANIFEST = "package.json"


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    # Nesting too deep for the parser is no JSON that we can use either.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); remove it or download it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file does not exist or holds something else.

    Raises:
      UserError: the file exists and cannot be read, or is not JSON.
    """
    return as_object(read_json(path)) if path.is_file() else {}


def as_object(value: Any) -> dict[str, Any]:
    """A JSON value if it is an object, else {}."""
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    """A JSON value if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def origin_of(package: dict[str, Any], info: dict[str, Any]) -> Origin:
    """The origin of a set.

    Args:
      package: what `package.json` holds; {} if there is none.
      info: the `info` of IconifyJSON, which knows better than the package; {} if there is none.
    """
    author, license_ = as_object(info.get("author")), as_object(info.get("license"))
    package_author = package.get("author")
    if isinstance(package_author, dict):
        package_author = package_author.get("name")
    name, version = as_text(package.get("name")), as_text(package.get("version"))
    return Origin(
        title=as_text(info.get("name")) or name,
        author=as_text(author.get("name")) or as_text(package_author),
        url=as_text(author.get("url")) or as_text(package.get("homepage")),
        license=as_text(license_.get("spdx"))
        or as_text(license_.get("title"))
        or as_text(package.get("license")),
        license_url=as_text(license_.get("url")),
        package=f"{name}@{version}" if name else "",
    )
