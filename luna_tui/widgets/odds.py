"""What the sites of a template can print and how likely, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from luna_tui.plain import clean, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards import SiteOdds

_BAR, _SHORT_BAR, _ROOMY = 10, 5, 44
_MOST_NAME = 40


class Odds(Static):
    """The odds of one template: exact shares, what is not listed summed."""

    def show(self, title: str, sites: Sequence[SiteOdds], width: int, rows: int) -> None:
        """Show as many shares as there are rows; several sites share them.

        Args:
            title: what the odds are of.
            sites: in reading order.
            width: cells in a line.
            rows: lines for all sites together, the title not counted.
        """
        lines = [Content.styled(fit(clean(f"odds of {title}"), width).rstrip(), "$text-muted")]
        each = max(1, rows // max(1, len(sites)) - (len(sites) > 1))
        for site in sites[: max(1, rows // 2)]:
            if len(sites) > 1:
                lines.append(Content.styled(fit(clean(site.reference), width).rstrip(), "$text-accent"))
            lines += _bars(site, width, each)
        if not sites:
            lines.append(Content.styled("nothing is drawn", "$text-muted"))
        self.update(Content("\n").join(lines))


def _bars(site: SiteOdds, width: int, rows: int) -> list[Content]:
    shown = site.shares[:rows] if len(site.shares) <= rows and not site.rest else site.shares[: max(1, rows - 1)]
    bar = _BAR if width >= _ROOMY else _SHORT_BAR
    longest = max((len(share.text) for share in shown), default=0)
    room = max(4, min(_MOST_NAME, width - bar - 11, max(longest, len("all others"))))
    lines = [_bar(share.text or "(nothing)", float(share.probability), room, bar) for share in shown]
    left = float(1 - sum(share.probability for share in shown))
    if len(site.shares) > len(shown) or site.rest:
        more = len(site.shares) - len(shown)
        lines.append(_bar(f"{more} more" if more and not site.rest else "all others", left, room, bar))
    if not site.is_exact:
        lines.append(Content.styled("not exact: it depends on earlier draws", "$text-warning"))
    return lines


def _bar(name: str, share: float, room: int, bar: int) -> Content:
    filled = round(share * bar)
    return Content.assemble(
        (fit(clean(name), room) + " ", "$foreground"),
        ("▕" + "█" * filled + " " * (bar - filled) + "▏", "$text-accent"),
        (f" {share * 100:5.1f} %", "$text-muted"),
    )
