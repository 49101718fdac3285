"""Benchmarks: the same prompts and seeds under several memories, generated, scored and compared in pairs."""
