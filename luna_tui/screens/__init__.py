"""One file per screen and per dialog. A screen subclasses `luna_tui.screens.base.LunaScreen`."""
