"""The efficiency suite: what reading once costs, and what asking from the store saves."""
