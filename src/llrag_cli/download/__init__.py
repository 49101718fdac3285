"""Downloads of released weights and prompts: a catalogue, a plan before any transfer, and a check of every file."""
