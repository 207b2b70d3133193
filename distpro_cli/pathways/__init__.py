"""Connections, transform blocks, distances, and the module that turns features into K losses."""
