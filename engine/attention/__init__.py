"""Attention of one layer over a memory of mixed resolution."""
