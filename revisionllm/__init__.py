"""ReVisionLLM: when does an event happen in an hour-long film, asked in one sentence."""

__version__ = "0.1.0"
