"""How each family makes conditioning of its encoders' states: which block, which norm, how they are joined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from luna_daemon.runtime.clip_text import CLIP_G, CLIP_L
from luna_daemon.runtime.qwen3 import QWEN3_4B
from luna_daemon.runtime.t5 import T5_XXL

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from luna_daemon.runtime.text_encoder import EncoderShape

_SD3_WIDTH = T5_XXL.width
_SD3_EMPTY_TOKENS = 77


@dataclass(frozen=True, slots=True)
class Section:
    """One prompt out of one encoder.

    Attributes:
        cond: [1, tokens, width].
        pooled: [1, width], projected if the family and the request want that; None for encoders without one.
        mask: [1, tokens] int64, 0 for padding; None for encoders that do not mask.
        dropped: vectors of a wrong width.
    """

    cond: torch.Tensor
    pooled: torch.Tensor | None
    mask: torch.Tensor | None
    dropped: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A prompt's conditioning: [1, tokens, width], [1, width] or None, and further tensors by ComfyUI's name."""

    cond: torch.Tensor
    pooled: torch.Tensor | None
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pick:
    """The block that an encoder gives by default (-1 the last), and whether a picked block passes the final norm."""

    layer: int
    is_normed: bool


LAST = Pick(-1, is_normed=True)
"""The last block after the final norm."""
BEFORE_LAST = Pick(-2, is_normed=False)
"""The block before the last, as it is."""


def join_on_width(family: TextFamily, sections: Mapping[str, Section]) -> Joined:
    """Lay the encoders' states side by side, cut to the shortest."""
    tokens = min(section.cond.shape[1] for section in sections.values())
    cond = torch.cat([sections[role].cond[:, :tokens] for role in family.shapes if role in sections], dim=-1)
    return Joined(cond, None if family.pooled is None else sections[family.pooled].pooled)


def join_flux(family: TextFamily, sections: Mapping[str, Section]) -> Joined:  # noqa: ARG001 - the seam
    """Take T5's states and CLIP-L's pooled one."""
    return Joined(sections["t5xxl"].cond, sections["l"].pooled)


def join_z_image(family: TextFamily, sections: Mapping[str, Section]) -> Joined:  # noqa: ARG001 - the seam
    """Take Qwen's states and its mask."""
    only = sections["qwen3_4b"]
    return Joined(only.cond, None, {} if only.mask is None else {"attention_mask": only.mask})


def join_sd3(family: TextFamily, sections: Mapping[str, Section]) -> Joined:
    """Lay l and g side by side, widen them with zeros, and put T5's rows behind; what is missing is zeros."""
    parts = []
    if "l" in sections or "g" in sections:
        parts.append(functional.pad(_sd3_clip(family, sections), (0, _SD3_WIDTH - _clip_width(family, sections))))
    if "t5xxl" in sections:
        parts.append(sections["t5xxl"].cond)
    cond = torch.cat(parts, dim=-2) if parts else torch.zeros(1, _SD3_EMPTY_TOKENS, _SD3_WIDTH)
    pooled = [_pooled_or_zeros(family, sections, role) for role in ("l", "g")]
    return Joined(cond, torch.cat(pooled, dim=-1))


def _sd3_clip(family: TextFamily, sections: Mapping[str, Section]) -> torch.Tensor:
    """Return l and g side by side; l missing is zeros on the left, g missing is nothing."""
    if "g" not in sections:
        return sections["l"].cond
    g = sections["g"].cond
    if "l" not in sections:
        return functional.pad(g, (family.shapes["l"].width, 0))
    l_ = sections["l"].cond
    tokens = min(l_.shape[1], g.shape[1])
    return torch.cat([l_[:, :tokens], g[:, :tokens]], dim=-1)


def _clip_width(family: TextFamily, sections: Mapping[str, Section]) -> int:
    return family.shapes["l"].width + (family.shapes["g"].width if "g" in sections else 0)


def _pooled_or_zeros(family: TextFamily, sections: Mapping[str, Section], role: str) -> torch.Tensor:
    found = sections[role].pooled if role in sections else None
    return torch.zeros(1, family.shapes[role].width) if found is None else found


@dataclass(frozen=True, slots=True)
class TextFamily:
    """How a family makes conditioning of its encoders' states.

    Attributes:
        shapes: role → encoder, in the order in which they are joined.
        picks: role → the block that it gives by default.
        pooled: the role whose pooled state is projected, if any is; for most the prompt's pooled state.
        is_projected: whether that state passes text_projection unless the request says otherwise.
        join: makes the conditioning.
        optional: roles that a set may lack: SDXL's refiner has no CLIP-L, and SD3 is trained to do without any.
        is_partial: whether a prompt may lack the tokens for some encoders.
        min_tokens: role → length to which a text's row is filled.
        template: what a text is put into before it is cut into tokens; prompt weights are then off.
    """

    shapes: Mapping[str, EncoderShape]
    picks: Mapping[str, Pick]
    pooled: str | None
    is_projected: bool
    join: Callable[[TextFamily, Mapping[str, Section]], Joined] = join_on_width
    optional: frozenset[str] = frozenset()
    is_partial: bool = False
    min_tokens: Mapping[str, int] = field(default_factory=dict)
    template: str | None = None


FAMILIES: Mapping[str, TextFamily] = {
    "sd15": TextFamily({"l": CLIP_L}, {"l": LAST}, pooled="l", is_projected=False),
    "sdxl": TextFamily(
        {"l": CLIP_L, "g": CLIP_G},
        {"l": BEFORE_LAST, "g": BEFORE_LAST},
        pooled="g",
        is_projected=True,
        optional=frozenset({"l"}),
    ),
    "sd3": TextFamily(
        {"l": CLIP_L, "g": CLIP_G, "t5xxl": T5_XXL},
        {"l": BEFORE_LAST, "g": BEFORE_LAST, "t5xxl": LAST},
        pooled="g",
        is_projected=True,
        join=join_sd3,
        optional=frozenset({"l", "g", "t5xxl"}),
        is_partial=True,
        min_tokens={"t5xxl": 77},
    ),
    "flux": TextFamily(
        {"l": CLIP_L, "t5xxl": T5_XXL},
        {"l": LAST, "t5xxl": LAST},
        pooled="l",
        is_projected=False,
        join=join_flux,
        min_tokens={"t5xxl": 256},
    ),
    "z-image": TextFamily(
        {"qwen3_4b": QWEN3_4B},
        {"qwen3_4b": BEFORE_LAST},
        pooled=None,
        is_projected=False,
        join=join_z_image,
        min_tokens={"qwen3_4b": 1},
        template="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
}


def wrong_roles(family: str, roles: Sequence[str]) -> set[str]:
    """Return what is missing or too many among the text encoders given for one of `FAMILIES`."""
    known = FAMILIES[family]
    given = set(roles)
    return (given - set(known.shapes)) | (set(known.shapes) - known.optional - given if given else set(known.shapes))


def usable_roles(family: str, roles: Sequence[str], vae_families: Container[str]) -> list[str]:
    """Return the roles that make a set of the family: its text encoders, if all are there, and the VAE."""
    is_text = family in FAMILIES and not wrong_roles(family, [role for role in roles if role != "vae"])
    is_vae = family in vae_families or family == "auto"
    return [role for role in roles if (is_vae if role == "vae" else is_text or family == "auto")]
