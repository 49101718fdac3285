"""The leave-and-return experiment: a place, another place, and back under a prompt that names nothing of the first."""
