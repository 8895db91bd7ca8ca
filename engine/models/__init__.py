"""Language models: names, loading, prompts, prefill."""
