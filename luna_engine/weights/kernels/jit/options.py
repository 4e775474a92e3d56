"""How numba compiles the kernels, and where it keeps what it compiled. Imported before the kernels."""

from __future__ import annotations

OPTIONS = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "fastmath": False,  # nothing is reassociated or contracted: results equal scalar C
    "error_model": "numpy",
}
