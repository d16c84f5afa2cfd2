"""Addresses of MLflow servers and databases, and how they are shown: never with a password."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit


def without_password(uri: str) -> str:
    """The address as it may be shown and hashed: user and password left out."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def without_passwords(text: str) -> str:
    """A command line or a message as it may be kept: user and password left out of every address in it."""
    return re.sub(r"(\w://)[^\s/'\"]*@", r"\1", text)


def credentials_aside(uri: str) -> str:
    """A server's address without user and password, which go where MLflow's client looks for them: the environment.

    Left in the address they would stand in MLflow's own messages and in what it logs. Other addresses are returned as
    they are: a database is reached by its address alone.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    if parts.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    if parts.password is not None:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return without_password(uri)
