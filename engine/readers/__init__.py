"""Models that read: any transformers causal LM (`hf`) and the small built-in one."""
