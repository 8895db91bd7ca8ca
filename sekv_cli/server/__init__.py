"""Stores kept warm behind an OpenAI-compatible endpoint, and the way to a server that runs.

`wire` is what is said, `warm` who answers, `app` how it is served; `door` and `client` are for
whoever asks, free of torch and of the web framework.
"""
