"""Models: known by alias, found or fetched, converted, identified and loaded."""
