"""ComfyUI's token dictionaries as flat rows for the wire: ids, weights and textual-inversion vectors.

Nodes cut and glue these dictionaries, so nothing is assumed beyond their shape: role -> chunks -> tokens, a token
being ``(id, weight)`` or ``(id, weight, word_id)`` with an int, a vector (a tensor) or a dict in the first place.
No tensor library is imported here; vectors are passed through as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """All chunks of one encoder, flattened.

    Attributes:
        rows: tokens per chunk.
        ids: one entry per token; -1-k stands for row k of the vectors, counted through.
        weights: one per token, or None if all are 1.
        vectors: textual-inversion rows in order of use, each of shape [width].
    """

    rows: tuple[int, ...]
    ids: tuple[int, ...]
    weights: tuple[float, ...] | None
    vectors: tuple[Any, ...]


def flatten(tokens: Mapping[str, Any]) -> dict[str, FlatTokens]:
    """Flatten a token dictionary, encoder by encoder. Entries that hold no chunks of tokens are refused.

    Raises:
        DaemonError: ``token-invalid`` naming role and chunk for anything that is no list of tokens;
            ``model-unsupported`` for tokens that carry images.
    """
    if not tokens:
        raise DaemonError("token-invalid", "the token dictionary is empty", "tokenize a text with this CLIP")
    return {role: _flatten_role(role, chunks) for role, chunks in tokens.items()}


def _flatten_role(role: str, chunks: Any) -> FlatTokens:
    if not isinstance(chunks, (list, tuple)) or not all(isinstance(chunk, (list, tuple)) for chunk in chunks):
        raise DaemonError(
            "token-invalid",
            f"tokens[{role!r}] is a {type(chunks).__name__}, expected a list of chunks of tokens",
            "this daemon takes plain text tokens; keep the CLIP local for this workflow",
        )
    ids: list[int] = []
    weights: list[float] = []
    vectors: list[Any] = []
    for index, chunk in enumerate(chunks):
        for token in chunk:
            ids.append(_identify(token, role, index, vectors))
            weights.append(float(token[1]))
    plain = all(weight == 1.0 for weight in weights)
    rows = tuple(len(chunk) for chunk in chunks)
    return FlatTokens(rows, tuple(ids), None if plain else tuple(weights), tuple(vectors))


def _identify(token: Sequence[Any], role: str, chunk: int, vectors: list[Any]) -> int:
    if not isinstance(token, (list, tuple)) or len(token) < 2:
        raise DaemonError("token-invalid", f"tokens[{role!r}][{chunk}] holds {token!r}, not (token, weight)")
    what = token[0]
    if isinstance(what, dict):
        raise DaemonError(
            "model-unsupported",
            f"tokens[{role!r}][{chunk}] holds an {what.get('type', 'unknown')} in the prompt",
            "encode prompts with images on a local CLIP",
        )
    if getattr(what, "ndim", 0) == 1:
        vectors.append(what)
        return -len(vectors)
    return int(what)


def group_by_width(vectors: Sequence[Any]) -> list[list[Any]]:
    """Cut vectors into runs of equal width, which is how they are stacked for the wire."""
    runs: list[list[Any]] = []
    for vector in vectors:
        if runs and runs[-1][0].shape == vector.shape:
            runs[-1].append(vector)
        else:
            runs.append([vector])
    return runs
