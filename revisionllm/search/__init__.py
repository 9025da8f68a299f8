"""The search of a film: levels, plans, their cost, and the searcher itself."""
