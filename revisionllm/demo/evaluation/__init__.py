"""Baselines, tables and figures of the demo's films."""
