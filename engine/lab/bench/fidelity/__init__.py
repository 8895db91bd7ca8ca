"""The laboratory: what a compressed memory loses, from one span's score to a whole answer."""
