"""ComfyUI's patches as a recipe that travels: read where they are added, sent once, named by hash in every request.

What a daemon cannot apply raises where it is added, not where the prompt is encoded. Nothing of ComfyUI is imported:
its adapters are told by their name and their tuple of weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from luna_daemon.encode_messages import LoraUse
from luna_daemon.patches import Patch, content_hash, pack
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.client import DaemonClient
    from luna_daemon.remote import RemoteSet

T = TypeVar("T")
_LAYOUTS: Mapping[str, tuple[str | None, ...]] = {
    "lora": ("up", "down", "alpha", "mid", "dora_scale", "reshape"),
    "loha": ("w1_a", "w1_b", "alpha", "w2_a", "w2_b", "t1", "t2", "dora_scale"),
    "lokr": ("w1", "w2", "alpha", "w1_a", "w1_b", "w2_a", "w2_b", "t2", "dora_scale"),
    "oft": ("blocks", "rescale", "alpha", "dora_scale"),
    "boft": ("blocks", "rescale", "alpha", "dora_scale"),
    "glora": ("a1", "a2", "b1", "b2", "alpha", "dora_scale"),
    "diff": ("weight",),
    "set": ("weight",),
    "model_as_lora": ("weight",),
}
"""What stands where in the tuple of weights of ComfyUI's adapters (0.3.64 to 0.12.1)."""
_CONVOLUTIONS = frozenset({"mid", "reshape", "t1", "t2"})
_LOCAL_HINT = "place the LoRA before the tunnel, which then keeps the CLIP local, or set its clip strength to 0"


@dataclass(frozen=True, slots=True)
class RecordedLora:
    """Patches that were added together, with their strengths.

    Attributes:
        hash: of the patches' content.
        patches: their tensors are the caller's; nothing is copied.
        strength, strength_model: of the patches and of the weights themselves.
    """

    hash: str
    patches: tuple[Patch, ...] = field(repr=False)
    strength: float
    strength_model: float

    @property
    def use(self) -> LoraUse:
        """Return what a request says of it."""
        return LoraUse(self.hash, self.strength, self.strength_model)

    @property
    def targets(self) -> frozenset[str]:
        """Return the weights that it changes."""
        return frozenset(patch.target for patch in self.patches)

    @property
    def nbytes(self) -> int:
        """Return the bytes that it keeps in memory here."""
        return sum(patch.nbytes for patch in self.patches)


def record(
    patches: Mapping[Any, Any], names: Mapping[str, Any], strengths: tuple[float, float]
) -> tuple[list[Any], RecordedLora | None]:
    """Read patches as ComfyUI gives them to ``add_patches``.

    Args:
        patches: name of the weight, or ``(name, slice)``, → adapter or tuple.
        names: the weights that there are.
        strengths: of the patches and of the weights themselves.

    Returns:
        The keys that exist, in the caller's form, and the record; None if nothing is changed.

    Raises:
        DaemonError: ``patch-unsupported`` for one that a daemon does not apply.
    """
    hits = [key for key in patches if _name(key) in names]
    read = tuple(_read(key, patches[key], names) for key in hits)
    changes = strengths != (0.0, 1.0) or any(patch.kind == "set" for patch in read)
    if not read or not changes:
        return hits, None
    return hits, RecordedLora(content_hash(read), read, *strengths)


def append(recipe: tuple[RecordedLora, ...], added: RecordedLora) -> tuple[RecordedLora, ...]:
    """Add a record at the end of a recipe.

    Nodes that scale weights add one patch for each of them, and a request takes few LoRAs. What only scales joins an
    earlier record that scales by as much, if no weight in it or behind it is changed by both: then order is no matter.
    """
    if added.strength != 0.0:
        return (*recipe, added)
    for index in range(len(recipe) - 1, -1, -1):
        earlier = recipe[index]
        if earlier.targets & added.targets:
            break
        if (earlier.strength, earlier.strength_model) == (added.strength, added.strength_model):
            patches = (*earlier.patches, *added.patches)
            joined = RecordedLora(content_hash(patches), patches, added.strength, added.strength_model)
            return (*recipe[:index], joined, *recipe[index + 1 :])
    return (*recipe, added)


def _name(key: Any) -> str:
    found: str = key if isinstance(key, str) else key[0]
    return found


def _read(key: Any, value: Any, names: Mapping[str, Any]) -> Patch:
    name = _name(key)
    part = None if isinstance(key, str) else tuple(key[1]) if key[1] is not None else None
    if not isinstance(key, str) and len(key) > 2 and key[2] is not None:
        raise _unsupported(name, "a function is applied to it")
    kind, weights = _kind_and_weights(name, value)
    layout = _LAYOUTS.get(kind)
    if layout is None or len(weights) > len(layout):
        raise _unsupported(name, f"it is of the kind {kind!r} with {len(weights)} parts")
    given = {where: item for where, item in zip(layout, weights, strict=False) if where and item is not None}
    odd = _CONVOLUTIONS & given.keys()
    if odd:
        raise _unsupported(name, f"it has {min(odd)}, which convolutions have and no text encoder")
    alpha = given.pop("alpha", None)
    if kind == "diff" and not given:
        kind, given = _nothing(names[name]["shape"], part)
    return Patch(name, kind, given, None if alpha is None else float(alpha), part)


def _nothing(shape: Sequence[int], part: Sequence[int] | None) -> tuple[str, dict[str, Any]]:
    """Return a patch that adds zeros: what a node gives as None, to have the weight itself scaled and nothing added."""
    import torch

    sizes = list(shape)
    if part is not None:
        sizes[part[0]] = part[2]
    if len(sizes) == 2:
        return "lora", {"up": torch.zeros(sizes[0], 1), "down": torch.zeros(1, sizes[1])}
    return "diff", {"weight": torch.zeros(sizes)}


def _kind_and_weights(name: str, value: Any) -> tuple[str, Sequence[Any]]:
    """Return the kind and the weights of an adapter, or of the plain tuples that come beside them."""
    if hasattr(value, "weights"):
        return str(value.name), value.weights
    if isinstance(value, tuple) and len(value) == 1:
        return "diff", value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        kind, weights = value
        if kind == "diff" and len(weights) > 1 and weights[1].get("pad_weight"):
            raise _unsupported(name, "it widens the weight")
        return kind, weights[:1] if kind == "diff" else weights
    raise _unsupported(name, f"it is a {type(value).__name__}")


def _unsupported(name: str, why: str) -> DaemonError:
    return DaemonError("patch-unsupported", f"{name} cannot be patched in the daemon: {why}", _LOCAL_HINT)


def call(remote: RemoteSet, recipe: Sequence[RecordedLora], request: Callable[[DaemonClient, str], T]) -> T:
    """Run a request whose LoRAs the daemon must have; what it lacks is sent first.

    If it has dropped one meanwhile, all that are missing are sent again and the request is repeated once.
    """
    by_hash = {lora.hash: lora for lora in recipe}
    unknown = [name for name in by_hash if name not in remote.loras]
    if unknown:
        _send(remote, by_hash, unknown)
    try:
        return remote.call(request)
    except DaemonError as error:
        if error.code != "lora-missing":
            raise
    _send(remote, by_hash, list(by_hash))
    return remote.call(request)


def _send(remote: RemoteSet, by_hash: Mapping[str, RecordedLora], names: Sequence[str]) -> None:
    poll = remote.host.check_interrupt
    found = remote.call(lambda client, _set: client.lora_has(names, poll=poll))
    for name in found.missing:
        blob = pack(by_hash[name].patches)
        remote.call(lambda client, _set, blob=blob, name=name: client.lora_put(blob, hash=name, poll=poll))  # type: ignore[misc]  # mypy infers no type for defaults of a lambda
    remote.loras.update(names)
