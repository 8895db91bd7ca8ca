"""A store opened for questions under a budget."""
