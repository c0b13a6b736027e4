"""An object of JSON that another command wrote, or an error that names it and says how to have it again."""

import json
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError


def read(url: str, remedy: str) -> dict[str, Any]:
    """The object at `url`.

    Raises FileNotFoundError where there is none, UserError with the `remedy` where it is not an object of JSON.
    """
    try:
        content = json.loads(storage.read_bytes(url))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{url}: not JSON ({error}). {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{url}: not an object of JSON. {remedy}")
    return content
