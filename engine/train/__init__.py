"""Training: the built-in reader and the router. Nothing here is needed to ask a question."""
