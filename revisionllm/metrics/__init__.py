"""Recall, mAP and the other scores, and the conventions of other evaluators."""
