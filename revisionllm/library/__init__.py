"""Many films: an index of their frames, and the search over all of them."""
