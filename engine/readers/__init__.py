"""Models that read: any causal LM of transformers (`hf`)."""
