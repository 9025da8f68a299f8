"""Data sets of text-to-video retrieval."""
