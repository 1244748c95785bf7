"""What client tokens and attempt tokens have in common: how they are made, stored and read from a request."""

from __future__ import annotations

import hashlib
import secrets

from fastapi import Request


def make_bearer_token(prefix: str) -> str:
    """A prefix, which tells the kinds apart, and 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def hash_bearer_token(token: str) -> str:
    """What is stored of a token: hex SHA-256; 256 random bits need no salt or stretching."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_bearer_token(request: Request) -> str | None:
    """The token in a request's header ``Authorization: Bearer``; None without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None
