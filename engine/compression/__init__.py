"""Keys and values of a window become spans, summaries, sketches and codes. No files, no model."""
