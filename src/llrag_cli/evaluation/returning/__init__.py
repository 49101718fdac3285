"""Returning scenes: a scene comes back after two others, goes on under a vague caption, and is compared with itself."""
