"""Whether what a conversion wrote is the model: errors by class, what is unusual, what is impossible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import ConversionError
from luna_engine.weights.tensor_classes import ErrorSum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_engine.weights.pipe import TensorResult
    from luna_engine.weights.plans import ConversionPlan

_FAILED_ERROR = 0.5  # a wrong scale, order or type gives 1 and more
_MOST_LOW = 0.05


def judge(
    found: ConversionPlan, results: Sequence[TensorResult]
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """Sum errors up by class; unusual ones are warned of, impossible ones fail the job."""
    sums: dict[str, ErrorSum] = {}
    for result in results:
        sums.setdefault(result.kind, ErrorSum()).merge(result.errors)
    figures: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    for kind, total in sorted(sums.items()):
        rmse = total.relative_rmse
        figures[kind] = {"tensors": total.tensors, "rmse": float(f"{rmse:.4g}"), "max": float(f"{total.greatest:.4g}")}
        if total.low or total.clipped:
            figures[kind] |= {"low": total.low, "clipped": total.clipped}
        if rmse > _FAILED_ERROR and not found.precision.is_error_open:
            raise ConversionError(
                "convert-failed",
                f"{kind} tensors came out with a relative error of {rmse:.3g}: the result is not the model",
                "please report this with the source's name",
            )
        if rmse > 2 * found.precision.usual_error:
            warnings.append(f"{kind}: relative error {rmse:.2g}, {2 * found.precision.usual_error:.2g} is usual")
    return figures, (*warnings, *_fp8_warnings(sums))


def _fp8_warnings(sums: Mapping[str, ErrorSum]) -> tuple[str, ...]:
    """Say what plain fp8 loses: it has no scale, and few bits where most weights lie."""
    values, low = sum(total.values for total in sums.values()), sum(total.low for total in sums.values())
    warnings: list[str] = []
    if low > _MOST_LOW * values:
        warnings.append(f"{low / values:.0%} of the fp8 values lie below its normal range: fp8_e4m3fn_scaled is better")
    if clipped := sum(total.clipped for total in sums.values()):
        warnings.append(f"{clipped:,} values beyond 448 were clipped: fp8_e4m3fn_scaled holds them")
    return tuple(warnings)
