"""How the rows of a span are kept so that they can come back."""
