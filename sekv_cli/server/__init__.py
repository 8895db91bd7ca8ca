"""Stores kept warm behind an OpenAI-compatible endpoint, and the way to a server that runs.

`wire` is what is said, `warm` who answers, `app` what is under each path, `answering` one question
on its way, `guard` who may ask, `process` how it runs and ends; `unix_socket` and `client` are for
whoever asks, free of torch and of the web framework.
"""
