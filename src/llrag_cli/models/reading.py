"""What a model makes of a prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptReading:
    """Parts of a prompt, in its own words."""

    understood: tuple[str, ...]
    ignored: tuple[str, ...]  # words without a meaning here
    impossible: tuple[str, ...]  # understood, but the model cannot draw it; each with the reason

    @property
    def complete(self) -> bool:
        """Whether everything is understood and can be drawn."""
        return not self.ignored and not self.impossible

    def sentence(self) -> str:
        """All of it in a line."""
        parts = {"understood": self.understood, "ignored": self.ignored, "cannot draw": self.impossible}
        return " · ".join(f"{name}: {', '.join(words)}" for name, words in parts.items() if words)
