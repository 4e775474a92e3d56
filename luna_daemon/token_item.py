"""One prompt's tokens as an item of ``encode_tokens`` and the segments it refers to."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.encode_messages import Layer, LoraUse, TokenItem, TokenRows
from luna_daemon.frames import WireTensor
from luna_daemon.token_dict import FlatTokens, flatten, group_by_width
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class TokenState:
    """What besides the tokens decides the result: the set's encoders, clip skip, which pooled output, LoRAs."""

    roles: tuple[str, ...]
    layer: Layer = None
    projected: bool | None = None
    loras: tuple[LoraUse, ...] = ()


def encode_item(tokens: Mapping[str, Any], state: TokenState, prefix: str = "0") -> tuple[TokenItem, list[WireTensor]]:
    """Turn a token dictionary into an item.

    Args:
        tokens: as ComfyUI's tokenizer made them, or as nodes glued them. Encoders that the set lacks are left out,
            as ComfyUI's own encoders do. An encoder with no rows is not sent: sd3 goes without it.
        state: see there.
        prefix: makes the names of the segments unique in a request of several items.

    Raises:
        DaemonError: ``token-invalid`` if an encoder of the set has no tokens or they are malformed.
    """
    given = {role: tokens[role] for role in state.roles if tokens.get(role)}
    if not given or any(role not in tokens for role in state.roles):
        raise DaemonError(
            "token-invalid",
            f"the tokens are for {', '.join(tokens) or 'no encoder'}; this CLIP needs {', '.join(state.roles)}",
            "tokenize with the CLIP that encodes",
        )
    encoders: dict[str, TokenRows] = {}
    tensors: list[WireTensor] = []
    for role, flat in flatten(given).items():
        encoders[role] = _add_rows(f"{prefix}.{role}", flat, tensors)
    return TokenItem(encoders, state.layer, state.projected, state.loras), tensors


def _add_rows(name: str, flat: FlatTokens, tensors: list[WireTensor]) -> TokenRows:
    tensors.append(_numbers(f"{name}.ids", "i32", array.array("i", flat.ids)))
    weights = None
    if flat.weights is not None:
        weights = f"{name}.weights"
        tensors.append(_numbers(weights, "f64", array.array("d", flat.weights)))
    vectors: list[str] = []
    for index, run in enumerate(group_by_width(flat.vectors)):
        vectors.append(f"{name}.vectors.{index}")
        tensors.append(_stack(vectors[-1], run))
    return TokenRows(rows=flat.rows, ids=f"{name}.ids", weights=weights, vectors=tuple(vectors))


def _numbers(name: str, dtype: str, values: array.array[Any]) -> WireTensor:
    if sys.byteorder == "big":
        values.byteswap()
    return WireTensor(name, dtype, (len(values),), memoryview(values).cast("B"))


def _stack(name: str, rows: list[Any]) -> WireTensor:
    import torch

    from luna_daemon.tensors import from_torch

    return from_torch(name, torch.stack([row.detach().to("cpu", torch.float32) for row in rows]))
