"""Measurements: what readers and recipes can do, with intervals and losses included."""
