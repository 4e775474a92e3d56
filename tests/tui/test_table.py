"""The list: thousands of rows, a cursor that stays with its key, columns that leave."""

from __future__ import annotations

from typing import Any

from textual.app import App, ComposeResult

from luna_tui.widgets.table import Cell, Column, ListTable, Row

COLUMNS = (
    Column("name", "NAME", 10, flex=True),
    Column("size", "SIZE", 8, align="right", drop=2),
    Column("note", "NOTE", 20, drop=1),
)


class Lists(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []

    def compose(self) -> ComposeResult:
        yield ListTable(COLUMNS, empty="nothing here", markable=True)

    def on_list_table_highlighted(self, message: ListTable.Highlighted) -> None:
        self.messages.append(message.key)


def rows(count: int) -> list[Row]:
    return [
        Row(f"k{number}", (Cell(f"row {number}"), Cell(str(number)), Cell("note")), (f"row {number}", number, ""))
        for number in range(count)
    ]


async def test_ten_thousand_rows_and_the_last_is_one_key_away() -> None:
    async with Lists().run_test(size=(60, 12)) as pilot:
        table = pilot.app.query_one(ListTable)
        table.set_rows(rows(10_000))
        await pilot.press("G")
        assert table.current is not None
        assert table.current.key == "k9999"
        assert table.scroll_y == 10_000 - 11
        await pilot.press("g", "ctrl+d")
        assert table.current.key == "k5"


async def test_the_cursor_stays_with_its_row_when_rows_come_and_go() -> None:
    async with Lists().run_test(size=(60, 12)) as pilot:
        table = pilot.app.query_one(ListTable)
        table.set_rows(rows(5))
        table.go_to("k3")
        table.set_rows([row for row in rows(5) if row.key != "k1"])
        assert table.current is not None
        assert table.current.key == "k3"
        table.set_rows(rows(2))
        assert table.current.key == "k1", "its row went: the nearest that is left"
        table.set_rows([])
        await pilot.pause()
        assert table.current is None
        assert pilot.app.messages[-1] is None


async def test_marks_stay_with_rows_and_act_in_the_order_shown() -> None:
    async with Lists().run_test(size=(60, 12)) as pilot:
        table = pilot.app.query_one(ListTable)
        table.focus()
        table.set_rows(rows(5))
        await pilot.press("space", "j", "space")
        assert table.targets() == ("k0", "k2")
        table.sort_by("size")
        table.sort_by("size")
        assert table.targets() == ("k2", "k0")
        table.set_rows(rows(1))
        assert table.targets() == ("k0",)


async def test_columns_leave_by_their_number_as_it_gets_narrow() -> None:
    async with Lists().run_test(size=(60, 12)) as pilot:
        table = pilot.app.query_one(ListTable)
        table.set_rows(rows(2))
        assert table.visible_columns == ("name", "size", "note")
        await pilot.resize_terminal(40, 12)
        await pilot.pause()
        assert table.visible_columns == ("name", "note")
        await pilot.resize_terminal(20, 12)
        await pilot.pause()
        assert table.visible_columns == ("name",)


async def test_sorting_by_number_not_by_text() -> None:
    async with Lists().run_test(size=(60, 12)) as pilot:
        table = pilot.app.query_one(ListTable)
        table.set_rows(rows(11))
        table.sort_by("size")
        assert [row.key for row in table.shown][-2:] == ["k9", "k10"]
        await pilot.pause()


async def test_lines_are_exactly_as_wide_as_the_list_with_wide_characters() -> None:
    async with Lists().run_test(size=(60, 12)) as pilot:
        table = pilot.app.query_one(ListTable)
        table.set_rows([Row("a", (Cell("猫のモデル" * 20), Cell("1"), Cell("👩‍🔬")))])
        await pilot.pause()
        assert {table.render_line(line).cell_length for line in range(3)} == {60}
