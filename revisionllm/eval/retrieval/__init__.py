"""The released retrieval evaluation: its logs, its filter, its numbers."""
