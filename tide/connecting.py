"""Which server a client speaks to, and with which token.

In: what the caller gave, `TIDE_URL` and `TIDE_TOKEN`, and the record of a running `tide up`. Out: an address
and a token.
"""

from __future__ import annotations

import os

from tide.instance import data_folder, read_instance
from tide.transport.connection import check_token
from tide_core.contracts.errors import InvalidInputError

ENV_URL = "TIDE_URL"
ENV_TOKEN = "TIDE_TOKEN"
"""Environment variable with the token that a control plane may ask for; no flag, since flags show in `ps`."""
DEFAULT_URL = "http://127.0.0.1:8700"


def find_url(url: str | None) -> str:
    """The given address; else that of `TIDE_URL`, of the `tide up` of the data folder, or the default."""
    given = url or os.environ.get(ENV_URL, "").strip()
    if given:
        return given
    instance = read_instance(data_folder())
    return instance.url if instance else DEFAULT_URL


def find_token(token: str | None) -> str | None:
    """The given token; else that of `TIDE_TOKEN`; else none.

    Raises:
        InvalidInputError: ``bad_token``: it cannot be one.
    """
    if token is not None:
        return check_token(token)
    try:
        return check_token(os.environ.get(ENV_TOKEN, "").strip() or None)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{ENV_TOKEN} holds no token: one begins with 'tide_' and has letters, digits, _ and - alone.",
            code=error.code,
            param=ENV_TOKEN,
        ) from None
