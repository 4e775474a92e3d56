"""Tab in dialogs: the focus moves before the next key is given out.

Textual's own tab waits in the queue of the field that has the focus, and keys typed right behind it go there too.
"""

from __future__ import annotations

from textual.binding import Binding

TAB_BINDINGS = (
    Binding("tab", "app.focus_next", "next field", show=False, priority=True),
    Binding("shift+tab", "app.focus_previous", "field before", show=False, priority=True),
)
