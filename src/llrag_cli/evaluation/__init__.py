"""The benchmark: the same prompts and seeds under several memories, made, scored and compared in pairs."""
