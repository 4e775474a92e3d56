"""`luna`: the headless command line. Never imports textual, torch or numpy; groups are imported when used."""

from __future__ import annotations

import sys

import click

import luna_engine
from luna_tui.frame import LazyGroup, global_options, run

COMMANDS = {
    "daemon": ("luna_tui.commands.daemon:group", "Start, stop and watch the model servers."),
    "demo-models": (
        "luna_tui.commands.demo_models:command",
        "Write small random-weight model files to try Luna with.",
    ),
    "doctor": ("luna_tui.commands.doctor:command", "Print where everything is and what is wrong."),
    "gpu": ("luna_tui.commands.gpu:command", "Show graphics cards and who uses their memory."),
    "weights": ("luna_tui.commands.weights:group", "Inspect and convert checkpoints."),
    "wildcards": ("luna_tui.commands.wildcards:group", "Expand and look at wildcard files."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@global_options
@click.version_option(luna_engine.__version__, prog_name="luna")
def luna() -> None:
    """Wildcards, weights and shared encoders for ComfyUI. `luna-tui` opens the application."""


def main() -> None:
    """Console entry."""
    sys.exit(run(luna))


if __name__ == "__main__":
    main()
