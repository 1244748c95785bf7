"""Identifiers that sort by their time of birth."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_DIGITS, _RANDOM_DIGITS = 10, 12


def _digits(value: int, count: int) -> str:
    digits = []
    for _ in range(count):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def new_id(prefix: str) -> str:
    """``<prefix>-`` and 22 characters: milliseconds, then randomness.

    Lower-case letters, digits and a hyphen only, so that an id is also a valid folder, label and Ray id.
    """
    moment = _digits(time.time_ns() // 1_000_000, _TIME_DIGITS)
    return f"{prefix}-{moment}{_digits(secrets.randbits(5 * _RANDOM_DIGITS), _RANDOM_DIGITS)}"
