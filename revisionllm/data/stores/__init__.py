"""Feature files: one reader for HDF5, LMDB and .npy, and their writers."""
