"""From sources to a store."""
