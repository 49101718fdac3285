"""Metrics of videos: one registry, computed in one pass over the frames."""
