"""Where a list of names goes on: tokens that only say after which name."""

import base64
import binascii

from rpc.errors import invalid_argument

_PREFIX = b"names:"


def write_token(name: str) -> str:
    return base64.urlsafe_b64encode(_PREFIX + name.encode()).decode()


def read_token(token: str) -> str:
    """The name. Raises LorikeetError, INVALID_ARGUMENT, for what no list returned."""
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        name = data.removeprefix(_PREFIX).decode()
    except (binascii.Error, ValueError):
        data, name = b"", ""
    if not data.startswith(_PREFIX) or not name:
        raise invalid_argument("PAGE_TOKEN", "page_token is not one that this list returned")
    return name
