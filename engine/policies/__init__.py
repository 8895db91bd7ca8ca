"""The choices a method is made of: where to cut, how to summarise, how to code, how to route.

One kind per file. A choice is a frozen dataclass whose fields are its configuration; the
protocol beside it is the whole extension point.
"""
