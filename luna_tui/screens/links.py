"""Screen 5: LoRA and embedding files of the model folders, and what their headers say."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import VerticalScroll

from luna_tui.glyphs import Tone
from luna_tui.screens.base import LunaScreen
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.facts import Facts
from luna_tui.widgets.table import Cell, Column, ListTable, Row
from luna_tui.wording import UNKNOWN, count, size

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from luna_tui.views import LinkRow, LinksView
    from luna_tui.widgets.facts import Fact

NO_ROOTS = (
    "No model folder is set.\n\n"
    'Name one in settings.toml (models = ["/path/to/models"]), in LUNA_MODELS, or set COMFYUI_PATH; then ctrl+r.'
)
NOTHING = (
    "No LoRA or embedding below the model folders.\n\n"
    "luna demo-models DIR writes small ones to try; ctrl+r reads again."
)


def row_of(row: LinkRow) -> Row:
    """Return a file's row."""
    bad = row.problem is not None
    cells = (
        Cell(("emb: " if row.kind == "embedding" else "") + row.name, Tone.BAD if bad else None),
        Cell(row.base or UNKNOWN, None if row.base else Tone.DIM),
        Cell(row.evidence or "", Tone.DIM),
        Cell(", ".join(row.triggers) or UNKNOWN, None if row.triggers else Tone.DIM),
        Cell("" if row.rank is None else str(row.rank), Tone.DIM),
        Cell(" ".join(row.encoders), Tone.DIM),
        Cell(size(row.bytes), Tone.DIM),
        Cell(row.problem.code if row.problem else "ok", Tone.BAD if bad else Tone.GOOD),
    )
    order = (row.name, row.base, row.evidence, row.triggers, row.rank, row.encoders, row.bytes, bad)
    return Row(row.path, cells, order)


class LinksScreen(LunaScreen):
    """LoRAs and embeddings."""

    SCREEN_ID = "links"
    ABOUT = (
        "LoRA and embedding files below the model folders, read from their headers alone. "
        "BASE is the model family they were made for, and EVIDENCE says how that is known. "
        "A file whose header is damaged stands in the list with its error."
    )
    CSS_PATH = "../styles/links.tcss"
    REFRESH_S = 0
    PANES: ClassVar[tuple[str, ...]] = ("loras", "detail")

    def __init__(self) -> None:
        super().__init__()
        self.view: LinksView | None = None

    def body(self) -> ComposeResult:
        """Yield list and detail."""
        columns = (
            Column("name", "LORA / EMBEDDING", 30, flex=True),
            Column("base", "BASE", 8),
            Column("evidence", "EVIDENCE", 9, drop=3),
            Column("triggers", "TRIGGERS", 18, drop=5),
            Column("rank", "RANK", 5, align="right", drop=2),
            Column("parts", "PARTS", 10, drop=4),
            Column("size", "SIZE", 9, align="right", drop=1),
            Column("status", "STATUS", 12),
        )
        with Pane(id="loras"):
            yield ListTable(columns, id="link-list", empty="reading headers …")
        yield Pane(VerticalScroll(Facts()), id="detail", classes="side")

    def load(self) -> LinksView:
        """Read headers."""
        return self.luna.backend.links.snapshot()

    def show(self, snapshot: LinksView) -> None:
        """Show files."""
        self.view = snapshot
        table = self.query_one("#link-list", ListTable)
        table.empty = NOTHING if snapshot.roots else NO_ROOTS
        table.set_rows([row_of(row) for row in snapshot.rows])
        bad = sum(row.problem is not None for row in snapshot.rows)
        title = count(len(snapshot.rows), "file") + (f" · {bad} damaged" if bad else "")
        self.query_one("#loras", Pane).set_title(title if snapshot.rows else "LoRAs and embeddings")
        self._show_current()

    @property
    def current(self) -> LinkRow | None:
        """The file under the cursor."""
        row = self.query_one("#link-list", ListTable).current
        return next((entry for entry in (self.view.rows if self.view else ()) if row and entry.path == row.key), None)

    def on_list_table_highlighted(self) -> None:
        """Show the file under the cursor."""
        self._show_current()

    def on_list_table_selected(self) -> None:
        """Open its details."""
        self.open_pane("detail")

    def _show_current(self) -> None:
        row = self.current
        self.query_one("#detail", Pane).set_title(row.name if row else "file")
        self.query_one(Facts).show(facts_of(row) if row else ())


def facts_of(row: LinkRow) -> list[Fact]:
    """Return label, value and style of what is known of one file."""
    facts: list[Fact] = [
        ("file", row.path, ""),
        ("kind", f"{row.kind}, {size(row.bytes)}", ""),
        ("base", f"{row.base or UNKNOWN}" + (f" (by its {row.evidence})" if row.evidence else ""), ""),
        ("rank", UNKNOWN if row.rank is None else str(row.rank), ""),
        ("parts", " ".join(row.encoders) or UNKNOWN, ""),
        ("triggers", ", ".join(row.triggers) or UNKNOWN, ""),
    ]
    if row.problem is not None:
        facts.append(("error", f"{row.problem.code}: {row.problem.message}", "b $text-error"))
        facts.append(("hint", row.problem.hint or UNKNOWN, ""))
    return facts
