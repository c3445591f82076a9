"""Layers of the model, as mathematics on a single device; parallelism wraps them and never edits them."""
