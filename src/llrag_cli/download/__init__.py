"""Fetching released weights and prompts: a catalogue, a plan made before a byte moves, a check of what arrived."""
