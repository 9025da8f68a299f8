"""A library for other programs: over HTTP (`serve`), for agents (`mcp`), by the same functions."""
