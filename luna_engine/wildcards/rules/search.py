"""Drawing a stage: every reference takes the first candidate of its order that agrees with all picks, or backtracks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

from luna_engine.wildcards.rules.agreement import (
    Breach,
    Influence,
    Need,
    breaches,
    can_matter,
    influences,
    is_met,
    needs_of,
)
from luna_engine.wildcards.rules.order import Order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from luna_engine.wildcards.drafts import Site
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.rules.ruleset import Facts, RuleSet

MOST_STEPS = 10_000
_STRICT_STEPS = 8_000
_MOST_OFFERED = 256
_FEWEST_OFFERED = 8
_MOST_WEIGHED = 50_000


@dataclass(frozen=True, slots=True)
class Reference:
    """A construct that draws from a pool; a multi-pick draws ``count`` items. ``fixed`` are picks given beforehand."""

    site: Site
    part: str
    level: int
    address: str
    pool: Pool
    count: int
    is_multi: bool
    fixed: tuple[int, ...] | None

    def order(self) -> tuple[str, str, int, int]:
        """Sort key: address named, site text, occurrence; then the key, which tells frames apart."""
        return (self.address, self.site.text, self.site.occurrence, self.site.key)


@dataclass(slots=True, eq=False)
class Pick:
    """One item drawn for a reference, with its share of the pool and what rules did to get there."""

    reference: Reference
    place: int
    at: int
    facts: Facts
    weight: int
    total: int
    size: int
    rejected: tuple[Breach, ...] = ()
    influences: tuple[Influence, ...] = ()

    @property
    def share(self) -> float:
        """Its share of the whole pool."""
        return self.weight / self.total

    @property
    def item(self) -> Item:
        """The item drawn."""
        return self.facts.item


@dataclass(slots=True)
class _Slot:
    """One pick to be made, and how far its search has come."""

    reference: Reference
    place: int
    order: Order | None = None
    weights: tuple[Sequence[int] | None, int] = (None, 0)
    next: int = 0
    seen: list[Facts] = field(default_factory=list)
    rejected: dict[Breach, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Search:
    rules: RuleSet
    before: list[Facts]
    slots: list[_Slot]
    steps: int = 0
    picks: list[Pick] = field(default_factory=list)
    gifts: dict[tuple[frozenset[int], str], bool] = field(default_factory=dict)
    wanting: list[Facts] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Note the earlier picks that still want something which this stage can give."""
        self.wanting = [
            facts
            for facts in self.before
            if any(not is_met(need, facts.item, self.before) and self.can_come(need, 0) for need in needs_of(facts))
        ]

    # -- what a slot may take

    def open(self, index: int) -> None:
        """Set a slot to the beginning of its order, weighed by the picks so far; later ones of a multi-pick go on."""
        slot = self.slots[index]
        slot.rejected = {}
        if slot.place:
            previous = self.slots[index - 1]
            slot.order, slot.weights, slot.next = previous.order, previous.weights, previous.next
            slot.seen = previous.seen
            return
        pool = slot.reference.pool
        slot.seen = [facts for facts in self.so_far() if facts.is_bound]
        sums, total = self.weighed(pool, slot.seen)
        slot.weights = (sums, total)
        slot.order = Order(slot.reference.site.key, len(pool.items), sums, int(slot.reference.is_multi))
        slot.next = 0

    def so_far(self) -> list[Facts]:
        return [*self.before, *(pick.facts for pick in self.picks)]

    def weighed(self, pool: Pool, picks: list[Facts]) -> tuple[Sequence[int] | None, int]:
        """Return the running weight sums of a pool with the factors of the rules; a very long list keeps its own."""
        if len(pool.items) > _MOST_WEIGHED or not can_matter(self.rules.addresses(pool), picks):
            return pool.sums, pool.total
        factors = [self.factor(item, picks) for item in pool.items]
        if all(factor == 1 for factor in factors):
            return pool.sums, pool.total
        scale = math.lcm(*{factor.denominator for factor in factors})
        sums = list(accumulate(pool.weight(at) * int(factor * scale) for at, factor in enumerate(factors)))
        return sums, sums[-1]

    def factor(self, item: Item, picks: list[Facts]) -> Fraction:
        return math.prod((one.factor for one in influences(self.rules.facts(item), picks)), start=Fraction(1))

    def make(self, slot: _Slot, at: int) -> Pick:
        sums, total = slot.weights
        pool = slot.reference.pool
        weight = 1 if sums is None else sums[at] - (sums[at - 1] if at else 0)
        facts = self.rules.facts(pool.items[at])
        changed = tuple(influences(facts, slot.seen)) if facts.is_bound else ()
        return Pick(
            slot.reference,
            slot.place,
            at,
            facts,
            weight,
            total,
            len(pool.items),
            tuple(slot.rejected),
            changed,
        )

    def offered(self, slot: _Slot) -> Iterator[int]:
        """Yield the candidates of a slot from where it stands, moving it on."""
        fixed = slot.reference.fixed
        while True:
            if fixed is not None:
                at = fixed[slot.place] if slot.next <= slot.place else None
                slot.next = slot.place + 1
            else:
                at = slot.order.at(slot.next) if slot.order is not None else None
                slot.next += 1
            if at is None:
                return
            yield at

    # -- every rule kept

    def strict(self) -> bool:
        """Find the first draw that breaks nothing; False if there is none within the steps."""
        self.picks = []
        index = 0
        if self.slots:
            self.open(0)
        while index < len(self.slots):
            pick = self.next_agreeing(index)
            if self.steps > _STRICT_STEPS:
                return False
            if pick is not None:
                self.picks.append(pick)
                index += 1
                if index < len(self.slots):
                    self.open(index)
                continue
            index -= 1
            if index < 0:
                return False
            self.picks.pop()
            # The pick given up was rejected for the reasons that left the next reference nothing.
            self.slots[index].rejected.update(self.slots[index + 1].rejected)
        return True

    def next_agreeing(self, index: int) -> Pick | None:
        slot = self.slots[index]
        so_far = self.so_far()
        bound = [facts for facts in so_far if facts.is_bound]
        for at in self.offered(slot):
            self.steps += 1
            if self.steps > _STRICT_STEPS:
                return None
            facts = self.rules.facts(slot.reference.pool.items[at])
            others = so_far if facts.is_bound else bound
            broken = next((breach for other in others for breach in breaches(facts, other)), None)
            if broken is None:
                broken = self.hopeless(index, so_far, facts)
            if broken is None:
                return self.make(slot, at)
            slot.rejected[broken] = None
        return None

    def hopeless(self, index: int, so_far: list[Facts], candidate: Facts) -> Breach | None:
        """Return what some pick wants that neither the picks so far nor any reference still to be drawn can give."""
        drawn = [*self.wanting, *(pick.facts for pick in self.picks), candidate]
        for facts in drawn:
            for need in needs_of(facts) if facts.item.whitelist or facts.states else ():
                if not is_met(need, facts.item, (*so_far, candidate)) and not self.can_come(need, index + 1):
                    return need.breach
        return None

    def can_come(self, need: Need, index: int) -> bool:
        return any(self.can_give(slot.reference.pool, word) for slot in self.slots[index:] for word in need.words)

    def can_give(self, pool: Pool, word: str) -> bool:
        """Tell whether a pool has a candidate with a tag; a very large pool is thought to have everything."""
        key = (pool.lists, word)
        if key not in self.gifts:
            items = pool.items if len(pool.items) <= _MOST_WEIGHED else ()
            self.gifts[key] = not items or any(word in self.rules.facts(item).tag_words for item in items)
        return self.gifts[key]

    # -- the fewest rules broken

    def relaxed(self) -> list[Pick]:
        """Return the draw with the fewest breaches met within the steps, by branch and bound over sorted candidates."""
        best: list[Pick] = []
        best_cost: tuple[int, int, int, int] | None = None
        self.picks = []
        offers: list[Iterator[tuple[tuple[int, int, int, int], Pick]]] = [self.sorted_offers(0)]
        costs = [(0, 0, 0, 0)]
        while offers:
            found = next(offers[-1], None)
            cost = None if found is None else _sum(costs[-1], found[0])
            if found is None or cost is None or (best_cost is not None and cost >= best_cost):
                offers.pop()
                costs.pop()
                if self.picks:
                    self.picks.pop()
                continue
            self.picks.append(found[1])
            if len(self.picks) == len(self.slots):
                whole = _sum(cost, self.unmet())
                if best_cost is None or whole < best_cost:
                    best, best_cost = list(self.picks), whole
                self.picks.pop()
            else:
                offers.append(self.sorted_offers(len(self.picks)))
                costs.append(cost)
            if best_cost is not None and self.steps > MOST_STEPS:
                break
        self.picks = best
        return best

    def sorted_offers(self, index: int) -> Iterator[tuple[tuple[int, int, int, int], Pick]]:
        """Yield the first candidates of a slot, those that break least first, with what each breaks."""
        slot = self.slots[index]
        self.open(index)
        if slot.place and slot.reference.fixed is None:
            slot.next = 0  # least broken first is no longer the order's order; what is taken is left out instead
        taken = {pick.at for pick in self.picks if pick.reference is slot.reference}
        so_far = self.so_far()
        bound = [facts for facts in so_far if facts.is_bound]
        most = max(_FEWEST_OFFERED, min(_MOST_OFFERED, MOST_STEPS // len(self.slots)))
        offers: list[tuple[tuple[int, int, int, int], Pick]] = []
        for at in self.offered(slot):
            if at not in taken:
                self.steps += 1
                pick = self.make(slot, at)
                others = so_far if pick.facts.is_bound else bound
                broken = [breach for other in others for breach in breaches(pick.facts, other)]
                offers.append((_cost(broken), pick))
            if len(offers) >= most:
                break
        return iter(sorted(offers, key=lambda offer: offer[0]))

    def unmet(self) -> tuple[int, int, int, int]:
        picks = self.so_far()
        return _cost(
            [need.breach for facts in picks for need in needs_of(facts) if not is_met(need, facts.item, picks)]
        )


def _cost(broken: Sequence[Breach]) -> tuple[int, int, int, int]:
    ranks = [breach.rank for breach in broken]
    return (len(ranks), ranks.count(0), ranks.count(1), ranks.count(2))


def _sum(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (first[0] + second[0], first[1] + second[1], first[2] + second[2], first[3] + second[3])


def ordinary_picks(rules: RuleSet, reference: Reference) -> list[Pick]:
    """Return the picks of a reference as they are without constraints."""
    search = _Search(rules, [], [_Slot(reference, place) for place in range(reference.count)])
    for index, slot in enumerate(search.slots):
        search.open(index)
        at = next(search.offered(slot), None)
        if at is not None:
            search.picks.append(search.make(slot, at))
    return search.picks


def draw_stage(rules: RuleSet, before: list[Pick], references: list[Reference]) -> list[Pick]:
    """Draw the references of one stage: the first draw that keeps every rule, else the one that breaks the fewest.

    Args:
        rules: the rules.
        before: the picks of the stages before.
        references: those of this stage, in any order.
    """
    slots = [
        _Slot(reference, place)
        for reference in sorted(references, key=Reference.order)
        for place in range(reference.count)
    ]
    search = _Search(rules, [pick.facts for pick in before], slots)
    return search.picks if search.strict() else search.relaxed()


def all_breaches(picks: list[Pick]) -> Iterator[tuple[Breach, Pick]]:
    """Yield every rule that the picks of one part break, with the pick that breaks it."""
    known = [pick.facts for pick in picks]
    for number, pick in enumerate(picks):
        if not pick.facts.is_bound:
            continue
        for place, other in enumerate(picks):
            if place < number or (place > number and not other.facts.is_bound):  # two bound ones meet once
                for breach in breaches(other.facts, pick.facts):
                    yield breach, pick if breach.culprit is pick.item else other
        for need in needs_of(pick.facts):
            if not is_met(need, pick.item, known):
                yield need.breach, pick
