"""Weights that stay packed as in their GGUF file and are decoded each time a layer is used.

Torch only: ComfyUI's classes are handed in by `comfy`. A packed weight shows the shape of its values; whatever asks
for its numbers gets them decoded, so that no operation ever works on the packed bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights.containers.reading import opened
from luna_engine.weights.headers import read_header
from luna_engine.weights.kernels import torch_blocks

from .tensor_reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from luna_engine.weights.containers.records import TensorInfo

_PLAIN = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
# Functions that move or copy the bytes and do not look at them.
_CARRYING = frozenset(
    {"detach", "clone", "cpu", "cuda", "pin_memory", "is_pinned", "requires_grad_", "data_ptr", "element_size",
     "untyped_storage", "is_contiguous", "storage_offset", "__get__", "__set__", "__repr__", "__deepcopy__"}
)  # fmt: skip


_without_overrides = torch._C.DisableTorchFunctionSubclass  # noqa: SLF001 - what torch's own subclasses use


class PackedTensor(torch.Tensor):
    """The bytes of packed blocks, with the type and the shape of what they stand for."""

    block_type: str
    logical_shape: tuple[int, ...]

    def __new__(cls, data: torch.Tensor, block_type: str, logical_shape: tuple[int, ...]) -> PackedTensor:  # noqa: PYI034 - no subclass of it exists
        """Wrap uint8 ``data``, which is not copied."""
        made: PackedTensor = torch.Tensor._make_subclass(cls, data, require_grad=False)  # noqa: SLF001 - torch's way
        made.block_type, made.logical_shape = block_type, logical_shape
        return made

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]  # torch calls it writable
        """The shape of the values."""
        return torch.Size(self.logical_shape)

    @property
    def ndim(self) -> int:  # type: ignore[override]  # torch calls it writable
        """The number of dimensions of the values."""
        return len(self.logical_shape)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape of the values, or one side of it."""
        return self.shape if dim is None else self.logical_shape[dim]

    def dim(self) -> int:
        """Return the number of dimensions of the values."""
        return len(self.logical_shape)

    def numel(self) -> int:
        """Return the number of values."""
        return math.prod(self.logical_shape)

    nelement = numel

    @property
    def packed(self) -> torch.Tensor:
        """The bytes as a plain tensor."""
        with _without_overrides():
            return self.as_subclass(torch.Tensor)

    def decoded(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> torch.Tensor:
        """Return the values: decoded in float32 on ``device``, then cast to ``dtype``."""
        data = self.packed if device is None else self.packed.to(device)
        return torch_blocks.decode(self.block_type, data).reshape(self.logical_shape).to(dtype)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Move or copy; to a floating type this decodes."""
        device, dtype, non_blocking, copy = _destination(args, kwargs)
        if dtype is not None and dtype.is_floating_point:
            return self.decoded(dtype, device)
        device = self.device if device is None else device
        return self.like(self.packed.to(device=device, non_blocking=non_blocking, copy=copy))

    def like(self, data: torch.Tensor) -> PackedTensor:
        """Return other bytes of the same type and shape."""
        return PackedTensor(data, self.block_type, self.logical_shape)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: packed weights are written as the file they came from, not as a pickle."""
        raise LunaError("precision-unsupported", "packed GGUF weights cannot be saved", "save the original model")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry type and shape along with the bytes; give any other function the decoded values."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _CARRYING:
            result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
            source = args[0]
            if isinstance(result, torch.Tensor) and isinstance(source, PackedTensor) and result is not source:
                with _without_overrides():
                    return source.like(result.as_subclass(torch.Tensor))
            return result
        if name == "copy_" and isinstance(args[0], PackedTensor) and isinstance(args[1], PackedTensor):
            args[0].packed.copy_(args[1].packed)
            return args[0]
        return func(*(_values(arg) for arg in args), **{key: _values(value) for key, value in kwargs.items()})


def _destination(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, torch.dtype | None, bool, bool]:
    """Read the arguments of `torch.Tensor.to`: device, dtype, non_blocking and copy."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    flags = [entry for entry in args if isinstance(entry, bool)]
    for entry in (*args, kwargs.get("other")):
        if isinstance(entry, torch.Tensor):
            device, dtype = entry.device, entry.dtype
        elif isinstance(entry, torch.dtype):
            dtype = entry
        elif isinstance(entry, (str, torch.device)) or (isinstance(entry, int) and not isinstance(entry, bool)):
            device = entry
    non_blocking = flags[0] if flags else bool(kwargs.get("non_blocking", False))
    copy = flags[1] if len(flags) > 1 else bool(kwargs.get("copy", False))
    return None if device is None else torch.device(device), dtype, non_blocking, copy


def _values(value: Any) -> Any:
    if isinstance(value, PackedTensor):
        return value.decoded()
    if isinstance(value, (tuple, list)):
        return type(value)(_values(entry) for entry in value)
    return value


def read_gguf(
    path: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Read a GGUF file's tensors, packed ones as they are, and its metadata.

    Raises:
        InputFileError: ``file-damaged``, or ``precision-unsupported`` naming the first type that is not read.
    """
    header = read_header(path)
    unknown = [info for info in header.tensors if info.dtype not in _PLAIN and info.dtype not in torch_blocks.DECODERS]
    if unknown:
        raise InputFileError(
            "precision-unsupported",
            f"{path.name}: {unknown[0].name} is packed as {unknown[0].dtype}, which is not read here",
            f"read are {', '.join(torch_blocks.DECODERS)}",
            file=str(path),
        )
    total = sum(info.size_bytes for info in header.tensors)
    done = 0
    tensors: dict[str, Any] = {}
    with opened(path) as (file, _):
        for info in header.tensors:
            tensors[info.name] = _read_tensor(file, info, path)
            done += info.size_bytes
            if progress is not None:
                progress(done, total)
    return tensors, header.metadata


def _read_tensor(file: BinaryIO, info: TensorInfo, path: Path) -> torch.Tensor:
    data = read_bytes(file, info, path)
    if info.dtype in _PLAIN:
        return data.view(_PLAIN[info.dtype]).reshape(info.shape)
    return PackedTensor(data, info.dtype, info.shape)


def make_operations(base: Any) -> Any:
    """Return ComfyUI's layer classes with weights that may be packed.

    Args:
        base: ``comfy.ops.manual_cast``.
    """

    class Operations(base):  # type: ignore[misc]
        class Linear(_Packable, base.Linear):  # type: ignore[misc]
            def compute(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
                return torch.nn.functional.linear(x, weight, bias)

        class Conv1d(_Convolution, base.Conv1d):  # type: ignore[misc]
            pass

        class Conv2d(_Convolution, base.Conv2d):  # type: ignore[misc]
            pass

        class Conv3d(_Convolution, base.Conv3d):  # type: ignore[misc]
            pass

        @classmethod
        def conv_nd(cls, dims: int, *args: Any, **kwargs: Any) -> Any:
            return (cls.Conv2d if dims == 2 else cls.Conv3d)(*args, **kwargs)

    return Operations


class _Packable:
    """A layer whose weight may be packed. Patches (LoRAs) are applied to the decoded weight and never packed again."""

    weight: Any
    bias: Any
    weight_function: list[Any]
    bias_function: list[Any]
    compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # the layer's own function

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        packed = state_dict.get(f"{prefix}weight")
        if not isinstance(packed, PackedTensor):
            super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]
            return
        others = {key: value for key, value in state_dict.items() if key.startswith(prefix) and value is not packed}
        missing = rest[2]
        super()._load_from_state_dict(others, prefix, *rest)  # type: ignore[misc]
        if f"{prefix}weight" in missing:
            missing.remove(f"{prefix}weight")
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def forward_comfy_cast_weights(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not isinstance(self.weight, PackedTensor):
            return super().forward_comfy_cast_weights(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        weight = self.weight.decoded(device=x.device)
        for function in self.weight_function:
            weight = function(weight)
        bias = self.bias
        if bias is not None:
            bias = bias.to(device=x.device, dtype=x.dtype)
            for function in self.bias_function:
                bias = function(bias)
        return self.compute(x, weight.to(x.dtype), bias)


class _Convolution(_Packable):
    def compute(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._conv_forward(x, weight, bias)  # type: ignore[attr-defined, no-any-return]  # torch's own


def make_patcher(base: Any, patch: Any, get_attribute: Callable[[Any, str], Any]) -> Any:
    """Return a model patcher that leaves packed weights as they are and patches what is decoded from them.

    Args:
        base: ComfyUI's patcher class.
        patch: ``LowVramPatch``: applies a key's patches to a weight.
        get_attribute: ``comfy.utils.get_attr``.
    """

    class PackedPatcher(base):  # type: ignore[misc]
        def patch_weight_to_device(
            self,
            key: str,
            device_to: Any = None,
            inplace_update: bool = False,  # noqa: FBT001, FBT002 - ComfyUI's signature
            return_weight: bool = False,  # noqa: FBT001, FBT002 - likewise
        ) -> Any:
            weight = get_attribute(self.model, key)
            if not isinstance(weight, PackedTensor):
                extra = {"return_weight": True} if return_weight else {}  # older ComfyUI does not know it
                return super().patch_weight_to_device(key, device_to, inplace_update, **extra)
            if return_weight:
                values = weight.decoded(device=device_to)
                return patch(key, self.patches)(values) if key in self.patches else values
            if key in self.patches:
                layer = get_attribute(self.model, key.rpartition(".")[0])
                layer.weight_function = [patch(key, self.patches), *layer.weight_function]
            return None

        def patch_hook_weight_to_device(self, hooks: Any, combined_patches: Any, key: str, *rest: Any) -> Any:
            if key in combined_patches and isinstance(get_attribute(self.model, key), PackedTensor):
                raise LunaError(
                    "patch-unsupported",
                    f"{key} is packed: a LoRA with a schedule (hook) cannot be applied to it",
                    "use LoraLoader, or the model in fp16 or bf16",
                )
            return super().patch_hook_weight_to_device(hooks, combined_patches, key, *rest)

        def pin_weight_to_device(self, key: str) -> None:
            if not isinstance(get_attribute(self.model, key), PackedTensor):
                super().pin_weight_to_device(key)

        def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:  # noqa: FBT001, FBT002 - likewise
            if unpatch_weights:
                for layer in self.model.modules():
                    if isinstance(getattr(layer, "weight", None), PackedTensor):
                        layer.weight_function = []
            return super().unpatch_model(device_to, unpatch_weights)

    return PackedPatcher
