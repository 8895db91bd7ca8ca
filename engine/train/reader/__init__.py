"""The built-in reader's recipe, from generated data to an exported folder.

`loop.train_reader` runs it; the engine itself only loads what `export` wrote.
"""
