"""The bundled library is clean, useful and the same on every machine."""

from __future__ import annotations

from luna_engine import paths
from luna_engine.settings import Settings
from luna_engine.wildcards import WildcardLibrary, default_roots

FIVE = [
    (
        "a broad-shouldered elf with glowing blue eyes and a single white streak in salt-and-pepper hair, "
        "wearing a shift dress"
    ),
    "a nervous beekeeper at work, steady hands, soft overcast light",
    "a clockwork butler with twin glass eyes, leaning against a wall",
    "a stocky river dwarf with wide hazel eyes and long braided hair, wearing a linen shirt and braces",
    "weathered court jester with long braided hair, a turquoise velvet gown, snapping fingers",
]


def bundled() -> WildcardLibrary:
    return WildcardLibrary.load(paths.bundled("wildcards"))


def test_seed_seven_gives_these_five_texts() -> None:
    batch = bundled().expand_many("{characters}", 5, 7, unique=False)
    assert [result.text for result in batch] == FIVE


def test_the_bundled_library_lints_clean() -> None:
    assert bundled().lint() == []


def test_every_template_of_every_file_expands_cleanly() -> None:
    library = bundled()
    for node in library.tree():
        if node.file is None or node.name.endswith(".txt"):
            continue
        for seed in range(40):
            result = library.expand(f"{{{node.address}}}", seed, strict=True)
            assert result.text.strip()
            assert "{" not in result.text
            assert "__" not in result.text


def test_there_is_enough_to_play_with() -> None:
    assert sum(node.items for node in bundled().tree()) > 1000


def test_the_default_roots_end_with_the_bundled_library() -> None:
    assert default_roots(Settings()) == [paths.bundled("wildcards")]
