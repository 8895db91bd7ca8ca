"""Training of zoom routers, and the search for retrieval heads."""
