"""Inference that shares what queries of a film have in common: `dense.py`, `segments.py`.

`attention.py` is its core, `decoder.py` the loop, `reference.py` the plain way to compare with.
"""
