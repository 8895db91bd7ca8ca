"""Documents with questions and right answers, generated or read from official files.

A suite lists its items and makes each from its own seed, so that any part of a run can be done
again and is the same. How answers are scored stands in `scores`; asking is `bench.compare`.
"""
