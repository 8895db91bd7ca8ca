"""Measurements and training. Nothing here is needed to use sekv."""
