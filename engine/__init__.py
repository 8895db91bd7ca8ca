"""The engine: documents in, memories out. It never imports the command line."""
