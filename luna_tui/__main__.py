"""`luna-tui`: open the application. Imports stay few until the options are read: first paint is measured."""

from __future__ import annotations

import argparse
import gc
import locale
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_engine.settings import Settings

_SCREENS = ("overview", "gpu", "weights", "wildcards", "links", "events")


def parser() -> argparse.ArgumentParser:
    """Return the option parser."""
    found = argparse.ArgumentParser(
        prog="luna-tui",
        description="Daemons, graphics memory, weights, wildcards and LoRAs in one terminal application.",
    )
    found.add_argument("--screen", choices=_SCREENS, default="overview", help="the screen to open with")
    found.add_argument("--readonly", action="store_true", help="change nothing (also LUNA_READONLY=1)")
    found.add_argument("--ascii", action="store_true", help="plain signs and borders (automatic without UTF-8)")
    found.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    found.add_argument("--theme", help="a theme by name, such as luna-night, luna-day, ansi-dark")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Console entry."""
    sys.exit(open_app(parser().parse_args(arguments)))


def open_app(options: argparse.Namespace) -> int:
    """Run the application and return its exit code."""
    gc.disable()  # collections while modules load cost a sixth of the first paint; the application enables it again
    if os.environ.get("NO_COLOR") == "":
        del os.environ["NO_COLOR"]  # by no-color.org an empty one does not count; Textual would count it
    if os.environ.get("SSH_CONNECTION"):
        os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    from luna_engine import paths, settings
    from luna_engine.errors import SettingsError

    try:
        loaded = settings.load()
    except SettingsError as error:
        print(f"luna-tui: {error}", file=sys.stderr)  # noqa: T201 - before the screen is taken
        return error.exit_code
    logging.basicConfig(
        filename=paths.private_dir("logs") / "luna-tui.log",
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        level=logging.WARNING,
    )
    return _run(options, loaded)


def _run(options: argparse.Namespace, loaded: Settings) -> int:
    from luna_tui.app import LunaApp
    from luna_tui.backend.local import LocalBackend

    readonly = options.readonly or loaded.ui.readonly or os.environ.get("LUNA_READONLY", "") not in {"", "0"}
    backend = LocalBackend(loaded, readonly=readonly)
    app = LunaApp(
        backend,
        start=options.screen,
        readonly=readonly,
        plain=options.ascii or loaded.ui.ascii or not _is_utf8(),
        theme=options.theme or loaded.ui.theme,
        keys=loaded.keys,
    )
    app.run(mouse=not options.no_mouse)
    if app.crash_file is not None:
        return 1
    if farewell := backend.farewell():
        print(farewell)  # noqa: T201 - the screen is given back
    return app.return_code or 0


def _is_utf8() -> bool:
    return "utf" in (getattr(sys.stdout, "encoding", "") or locale.getpreferredencoding(do_setlocale=False)).lower()


if __name__ == "__main__":
    main()
