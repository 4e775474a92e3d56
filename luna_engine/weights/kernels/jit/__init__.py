"""Kernels in numba's dialect of Python: typed by numba when it compiles them, and by nothing before."""
