"""Secrets that a command needs: never from a flag, since ps shows flags."""

from __future__ import annotations

import os
import sys

from moshimesh.cli.output import CommandFailed


def handle_of_environment() -> str:
    """The resume handle from MOSHIMESH_HANDLE or stdin. Raises CommandFailed."""
    return _secret("MOSHIMESH_HANDLE", "resume handle")


def grant_of_environment() -> str:
    """The grant from MOSHIMESH_GRANT or stdin. Raises CommandFailed."""
    return _secret("MOSHIMESH_GRANT", "grant")


def _secret(variable: str, what: str) -> str:
    secret = os.environ.get(variable, "") or sys.stdin.readline().strip()
    if not secret:
        raise CommandFailed(f"no {what} came; set {variable}, or give it on stdin")
    return secret
