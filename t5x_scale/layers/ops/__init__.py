"""Kernels, each behind one function with a reference implementation."""
