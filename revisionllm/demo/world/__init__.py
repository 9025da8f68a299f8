"""The rendered world: plans of films, their language, their pictures."""
