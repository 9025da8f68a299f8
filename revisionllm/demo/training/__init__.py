"""Training of the demo's CLIP, LLM and adapters."""
