"""The group that the verbs of `luna daemon` register on."""

from __future__ import annotations

import click


@click.group("daemon")
def group() -> None:
    """Start, stop and watch the model servers."""
