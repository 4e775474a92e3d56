"""The daemons port: hosts the supervisor in a thread of its own if its lock is free, else looks on.

Verbs need no lock: they act through the supervisor's own functions, so a viewer's keys work too.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from luna_engine import paths
from luna_engine import settings as settings_file
from luna_engine.errors import LunaError
from luna_tui.backend import daemon_forms
from luna_tui.backend.daemon_rows import changes, row_of
from luna_tui.views import DaemonsView, EventRow, Outcome, SupervisorView

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.supervisor import Supervisor
    from luna_engine.settings import Settings
    from luna_tui.views import DaemonDraft, DaemonRow, FieldProblem, FormChoices, GpusView

_log = logging.getLogger(__name__)
