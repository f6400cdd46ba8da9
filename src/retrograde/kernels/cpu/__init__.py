"""Numba kernels for the CPU. Importing a module of this package imports Numba, and its first call compiles."""
