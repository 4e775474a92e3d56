"""The one table of actions: what a person can do, with which key, how grave it is, and the same thing for a shell.

Screens take their key bindings, footer, help and palette entries from here. A row stands here only if its handler
(``do_<id with _ for .>`` on the screen or the application) works.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Grade(Enum):
    """How an action is confirmed: not at all, by a question that names the loss, or by typing the name."""

    NONE = "none"
    ASK = "ask"
    TYPED = "typed"


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the table.

    ``cli`` is the command line with ``{target}`` for what the action is applied to; where there is none, ``no_cli``
    says why. ``screens`` empty means everywhere. ``shown`` puts it in the footer.
    """

    id: str
    label: str
    keys: str
    help: str
    screens: tuple[str, ...] = ()
    grade: Grade = Grade.NONE
    mutates: bool = False
    cli: str | None = None
    no_cli: str | None = None
    shown: bool = True
    priority: bool = False

    @property
    def handler(self) -> str:
        """Return the name of the method that does it."""
        return "do_" + self.id.replace(".", "_")


_VIEW = "only moves what is seen"

GLOBAL = (
    Action("screen.overview", "Overview", "1,alt+1", "Daemons and their logs.", no_cli=_VIEW, shown=False),
    Action("screen.gpu", "GPU", "2,alt+2", "Who has the VRAM.", no_cli=_VIEW, shown=False),
    Action("screen.weights", "Weights", "3,alt+3", "Checkpoints and conversions.", no_cli=_VIEW, shown=False),
    Action("screen.wildcards", "Wildcards", "4,alt+4", "Wildcard files and samples.", no_cli=_VIEW, shown=False),
    Action("screen.links", "Links", "5,alt+5", "LoRAs and embeddings.", no_cli=_VIEW, shown=False),
    Action("screen.events", "Events", "6,alt+6", "What happened, and the logs.", no_cli=_VIEW, shown=False),
    Action("pane.next", "pane", "tab", "Go to the next pane.", no_cli=_VIEW, shown=False),
    Action("pane.previous", "pane back", "shift+tab", "Go to the pane before.", no_cli=_VIEW, shown=False),
    Action("pane.zoom", "zoom", "z", "Give the whole screen to the current pane, or back.", no_cli=_VIEW, shown=False),
    Action("app.refresh", "refresh", "ctrl+r", "Read everything again.",
           no_cli="a command reads anew", shown=False),
    Action("app.command_line", "command", "at", "Show the last actions as command lines.",
           no_cli="shows other command lines", shown=False),
    Action("app.help", "help", "question_mark,f1", "The keys that work here.", no_cli="luna --help says it"),
    Action("app.back", "back", "escape", "Undo one layer: dialog, filter, opened row.", no_cli=_VIEW, shown=False),
    Action("app.quit", "quit", "q,ctrl+q", "Leave. Daemons keep running.",
           no_cli="a command ends by itself", shown=False),
)  # fmt: skip

# In every list and log, where a widget of that kind has the focus or is the screen's main one.
LISTS = (
    Action("list.filter", "filter", "slash", "Show only rows with these words; !not, ~regex, a|b, column:word.",
           screens=("overview", "gpu", "weights", "wildcards", "links", "events"),
           no_cli="a shell has grep"),
    Action("list.sort", "sort", "o", "Sort by a column: o, then the marked letter; again reverses.",
           screens=("overview", "gpu", "weights", "links", "events"), no_cli="a shell has sort", shown=False),
)  # fmt: skip

OVERVIEW = (
    Action("daemon.start", "start", "s", "Start the daemon under the cursor.", ("overview",), mutates=True,
           cli="luna daemon start {target}"),
    Action("daemon.stop", "stop", "x", "Stop it: drain, then SIGTERM, then SIGKILL.", ("overview",),
           Grade.ASK, mutates=True, cli="luna daemon stop {target}"),
    Action("daemon.restart", "restart", "r", "Stop and start; from back-off, start now.", ("overview",),
           Grade.ASK, mutates=True, cli="luna daemon restart {target}"),
    Action("daemon.kill", "kill", "K", "End its process at once, without asking it.", ("overview",),
           Grade.TYPED, mutates=True, cli="luna daemon stop {target} --force"),
    Action("daemon.adopt", "adopt", "a", "Look for daemons that already run.", ("overview",), mutates=True,
           no_cli="luna daemon status finds them by itself"),
    Action("daemon.configure", "configure", "c", "Set up a new daemon.", ("overview",), mutates=True,
           no_cli="a form; settings.toml holds the same"),
    Action("daemon.edit", "edit", "e", "Change the daemon under the cursor.", ("overview",), mutates=True,
           no_cli="a form; settings.toml holds the same", shown=False),
    Action("daemon.forget", "forget", "d", "Remove a stopped daemon from the settings.", ("overview",),
           Grade.ASK, mutates=True, no_cli="remove its table from settings.toml", shown=False),
    Action("daemon.log", "log", "l", "Go to its log.", ("overview",), cli="luna daemon logs {target} --follow"),
)  # fmt: skip

GPU = (
    Action("gpu.reset_peak", "reset peak", "c", "Forget the highest use seen.", ("gpu",),
           no_cli="peaks belong to this window"),
)  # fmt: skip

LOGS = (
    Action("log.follow", "follow", "F", "Follow the log again.", ("overview", "events"), no_cli=_VIEW, shown=False),
    Action("log.level", "level", "v", "Least level that is shown.", ("overview", "events"), no_cli=_VIEW, shown=False),
    Action("log.time", "time", "t", "Time of lines: clock, none.", ("overview", "events"), no_cli=_VIEW, shown=False),
    Action("log.clear", "clear", "ctrl+l", "Clear the view; the file stays.", ("overview", "events"), no_cli=_VIEW,
           shown=False),
    Action("item.copy", "copy", "y", "Copy the line or name under the cursor.",
           ("overview", "gpu", "weights", "links", "events"), shown=False,
           no_cli="a shell has the clipboard's own tools"),
)  # fmt: skip

LINKS: tuple[Action, ...] = ()
EVENTS = (
    Action("item.open", "open", "enter", "Go to where it happened.", ("events",), no_cli=_VIEW),
)  # fmt: skip

# WEIGHTS and WILDCARDS are the sections of screens 3 and 4.
WEIGHTS = (
    Action("weights.convert", "convert", "c", "Write the diffusion part in another precision; the plan comes first.",
           ("weights",), mutates=True, cli="luna weights convert {target}"),
    Action("weights.verify", "verify", "v", "Read its converted files again: structure, hash, finite values, source.",
           ("weights",), cli="luna weights verify {target}"),
    Action("weights.inspect", "inspect", "i", "Read the header: what it is, why, and every tensor.", ("weights",),
           no_cli="luna weights inspect FILE says the same"),
    Action("weights.prune", "prune", "d", "Say which converted files can go; enter moves them into the trash.",
           ("weights",), mutates=True, cli="luna weights prune {target} --apply"),
    Action("weights.undo", "undo", "u", "Bring back what was pruned last.", ("weights",), mutates=True,
           cli="luna weights undo"),
    Action("weights.empty_trash", "empty trash", "E", "Delete what waits in the trash for good.", ("weights",),
           Grade.TYPED, mutates=True, cli="luna weights prune --apply --permanent", shown=False),
    Action("weights.pin", "pin", "P", "Let a converted file stay whatever is pruned, or no longer.", ("weights",),
           mutates=True, cli="luna weights pin {target}"),
    Action("weights.add", "add path", "a", "Show a file or folder beside the configured ones.", ("weights",),
           no_cli="luna weights list FOLDER takes it", shown=False),
    Action("job.cancel", "cancel", "x", "Stop the job under the queue's cursor; its part file goes.", ("weights",),
           Grade.ASK, mutates=True, cli="luna weights jobs {target} --cancel"),
    Action("job.retry", "retry", "r", "Queue a failed or cancelled job again.", ("weights",), mutates=True,
           cli="luna weights jobs {target} --retry"),
    Action("job.pause", "pause", "p", "Hold the job under the queue's cursor, or let it go on.", ("weights",),
           mutates=True, cli="luna weights jobs {target}"),
    Action("job.earlier", "earlier", "shift+up", "Start a waiting job before the one above it.", ("weights",),
           mutates=True, cli="luna weights jobs {target}", shown=False),
    Action("job.later", "later", "shift+down", "Start a waiting job after the one below it.", ("weights",),
           mutates=True, cli="luna weights jobs {target}", shown=False),
    Action("weights.fold", "fold", "left,h", "Hide the converted files of a source.", ("weights",), no_cli=_VIEW,
           shown=False),
    Action("weights.unfold", "unfold", "right,l", "Show the converted files of a source.", ("weights",), no_cli=_VIEW,
           shown=False),
)  # fmt: skip
WILDCARDS = (
    Action("item.save", "save", "ctrl+s", "Save the file in the editor, if nobody changed it meanwhile.",
           ("wildcards",), mutates=True, no_cli="saves what is typed here"),
    Action("wildcards.insert", "insert", "ctrl+o", "Find an address and put a reference to it where the cursor is.",
           ("wildcards",), no_cli="types text"),
    Action("wildcards.next_problem", "next problem", "ctrl+n", "Go to the next problem of the library.", ("wildcards",),
           cli="luna wildcards lint"),
    Action("wildcards.definition", "go to", "ctrl+g", "Go to what the reference under the cursor names.",
           ("wildcards",), no_cli=_VIEW, shown=False, priority=True),
    Action("wildcards.back", "go back", "alt+g", "Go back to where the last jump began.", ("wildcards",),
           no_cli=_VIEW, shown=False),
    Action("wildcards.find", "find", "ctrl+f", "Find in the file that is open.", ("wildcards",),
           no_cli="a shell has grep", shown=False, priority=True),
    Action("wildcards.external", "editor", "alt+e", "Open the file in $EDITOR at the line.", ("wildcards",),
           mutates=True, no_cli="a shell starts editors itself", shown=False),
    Action("wildcards.reroll", "reroll", "ctrl+r", "Draw the samples with new seeds.", ("wildcards",),
           no_cli="luna wildcards expand --seed random"),
    Action("wildcards.prompt", "prompt", "ctrl+t", "Type a prompt of your own for the samples.", ("wildcards",),
           no_cli="luna wildcards expand PROMPT"),
    Action("wildcards.choices", "choices", "c", "Show where each word of a sample came from; enter goes there.",
           ("wildcards",), no_cli="luna wildcards expand --json has them"),
    Action("wildcards.odds", "odds", "b", "Show how likely each text is: of the choice under the cursor, else of all.",
           ("wildcards",), cli="luna wildcards odds {target}"),
    Action("wildcards.steps", "steps", "S", "Walk the sample under the cursor draw by draw.", ("wildcards",),
           cli="luna wildcards steps {target}"),
    Action("wildcards.uses", "uses", "U", "Show where the address under the tree's cursor is used.", ("wildcards",),
           cli="luna wildcards uses {target}"),
    Action("wildcards.pin", "pin", "exclamation_mark", "Keep the text of a choice in all samples, or free it.",
           ("wildcards",), no_cli="changes the samples only", shown=False),
    Action("wildcards.reroll_site", "reroll one", "r", "Draw the choice under the cursor anew, and nothing else.",
           ("wildcards",), no_cli="changes the samples only", shown=False),
    Action("wildcards.seed", "seed", "equals_sign", "Draw the samples from a seed of yours.", ("wildcards",),
           no_cli="luna wildcards expand --seed", shown=False),
    Action("wildcards.profile", "profile", "P", "Read the prompt as native, dynamicprompts or impact.",
           ("wildcards",), no_cli="luna wildcards expand --profile", shown=False),
    Action("wildcards.more", "more", "plus", "Show five samples more.", ("wildcards",), shown=False,
           no_cli="luna wildcards expand --count"),
    Action("wildcards.fewer", "fewer", "minus", "Show five samples less.", ("wildcards",), shown=False,
           no_cli="luna wildcards expand --count"),
)  # fmt: skip

TABLE: dict[str, Action] = {
    action.id: action for action in (*OVERVIEW, *GPU, *WEIGHTS, *WILDCARDS, *LINKS, *EVENTS, *LISTS, *LOGS, *GLOBAL)
}


def on_screen(screen: str) -> tuple[Action, ...]:
    """Return the actions of a screen, its own before the global ones."""
    return tuple(action for action in TABLE.values() if screen in action.screens or not action.screens)
