"""How a query finds the spans that matter to it."""
