"""Memory strategies: which past latent frames a block attends to.

A strategy is one class: its parameters are its fields, ``choose`` picks frames, and the decorator enters it into the
registry that configuration, command line, benchmark and tests read. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args

from pydantic import Field, TypeAdapter, model_validator

from llrag_cli.cache.tiers import Tier
from llrag_cli.errors import UsageError
from llrag_cli.files.settings import Config, require_kinds
from llrag_cli.memory.candidates import Candidates, cosine_similarities, top

if TYPE_CHECKING:
    from torch import Tensor


class MemoryConfig(Config):
    """Which past latent frames one block attends to; every count is in latent frames."""

    strategy: str
    window: int | None = Field(default=12, gt=0, description="frames attended, own block included; null: unlimited")
    sink: int = Field(default=1, ge=0, description="first frames of the video, always attended")
    recache: Literal["keep", "renew", "none"] = Field(
        default="keep",
        description="when the prompt changes: compute keys and values of the window again and keep the sink's, or make "
        "the oldest frames of the window the sink (`renew`), or neither",
    )
    commit: Literal["full", "recent", "self"] = Field(
        default="full",
        description="what the clean pass that leaves a block's keys and values attends to: what its denoising does "
        "(`full`), the newest frames without sink and retrieved ones (`recent`), or the block alone (`self`)",
    )
    commit_frames: int | None = Field(
        default=None,
        gt=0,
        description="C: frames attended with commit `recent`, own block included; null: the window's",
    )

    @property
    def title(self) -> str:
        """What it is called in headings and names."""
        return self.strategy

    def require_ready(self) -> None:
        """Raise ``LlragError`` if frames cannot be chosen in this process."""

    @property
    def retrieves(self) -> bool:
        """Whether frames outside the window are attended again, so that an archive is needed."""
        return False

    @property
    def relative_times(self) -> bool:
        """Whether frames have the rotary times of their slots in the window, and not those of the video."""
        return False

    @property
    def sink_decay(self) -> float | None:
        """The weight that a running mean of the sink keeps when a frame leaves the window; None: the sink stays."""
        return None

    def commit_reach(self, block: int) -> int | None:
        """Frames that the clean pass of a block of ``block`` frames attends to, its own included.

        They are the newest ones. None: the pass attends to what denoising attends to.
        """
        if self.commit == "full":
            return None
        return block if self.commit == "self" else self.commit_frames or self.window

    @property
    def recent_frames(self) -> int | None:
        """Newest frames, besides the sink, whose keys and values later blocks may attend to; None: all."""
        if self.window is None:
            return None
        committed = self.commit_frames or self.window if self.commit == "recent" else 0
        return max(self.window - self.sink, committed)

    @model_validator(mode="after")
    def _sink_fits(self) -> Self:
        if self.window is not None and self.sink >= self.window:
            raise ValueError(f"a sink of {self.sink} frames does not fit into a window of {self.window}")
        return self

    @model_validator(mode="after")
    def _commit_fits(self) -> Self:
        if self.commit != "recent":
            if self.commit_frames is not None:
                raise ValueError(f"commit_frames is read by commit `recent` only, not by `{self.commit}`")
        elif self.window is None and self.commit_frames is None:
            raise ValueError("commit `recent` without a window needs commit_frames, the frames that it attends to")
        elif self.window is not None and self.commit_frames is not None and self.commit_frames > self.window:
            raise ValueError(f"commit_frames {self.commit_frames} is more than the window of {self.window}")
        return self


MOST_RETRIEVED = 4096  # frames of a block


class RetrievalMemory(MemoryConfig):
    """Common to all strategies that retrieve frames from the history."""

    query: ClassVar[Literal["newest", "draft"]] = "newest"
    """What frames are compared with: the newest frame, or the last frame of a draft of the block."""

    window: int = Field(default=12, gt=0, description="frames attended, own block and retrieved ones included")
    retrieved: int = Field(
        default=6, ge=0, le=MOST_RETRIEVED, description="K: frames retrieved from the history for each block"
    )
    guard: int = Field(default=0, ge=0, description="R: newest evicted frames that are no candidates")
    times: Literal["collapsed", "interpolated", "ordered"] = Field(
        default="collapsed",
        description="rotary times of retrieved frames: 0 for all (`collapsed`), or between sink and local frames, by "
        "when they were made (`interpolated`) or by rank (`ordered`)",
    )
    read_steps: int | None = Field(
        default=None, gt=0, description="last denoising steps that attend to retrieved frames; null: all steps"
    )
    read_layers: int | None = Field(
        default=None,
        gt=0,
        description="last layers of the backbone that attend to retrieved frames, and that are archived; null: all",
    )
    keys: Literal["average", "encoder", "attention"] = Field(
        default="average",
        description="what frames are found by: `average` pooling, the retrieval `encoder`, or the `attention` of the "
        "newest block to them in one layer",
    )
    key_layer: int | None = Field(
        default=None, ge=0, description="layer of keys `attention`, from 0; null: two thirds of the way"
    )
    alignment: float = Field(
        default=0,
        ge=0,
        le=1,
        description="how far means and deviations of retrieved keys and values are moved to those of the sink",
    )
    encoder: str | None = Field(
        default=None, description="file of the retrieval encoder, for keys `encoder`; the embedded model has its own"
    )
    archive: Literal["auto", Tier] = Field(
        default="device",
        description="where keys and values of frames outside the window are kept: `device`, `host`, `disk` (exact), "
        "`host-int8`, `recompute` (approximate); `auto` takes the first exact one that fits",
    )

    def unread_layers(self, layers: int) -> int:
        """How many of a backbone's layers, the first ones, attend to no retrieved frames.

        Raises ``UsageError`` if more layers are to read than there are.
        """
        if self.read_layers is None:
            return 0
        if self.read_layers > layers:
            raise UsageError(
                f"read_layers {self.read_layers} is more than the {layers} layers of the backbone",
                hint=f"set `memory.read_layers` to at most {layers}, or null for all",
            )
        return layers - self.read_layers

    def attention_layer(self, layers: int) -> int | None:
        """The layer of a backbone's that keys `attention` are of; None with other keys.

        Raises ``UsageError`` if there is no such layer.
        """
        if self.keys != "attention" or not self.retrieves:
            return None
        layer = 2 * layers // 3 if self.key_layer is None else self.key_layer
        if layer >= layers:
            raise UsageError(
                f"key_layer {layer} is none of the {layers} layers of the backbone",
                hint=f"set `memory.key_layer` to at most {layers - 1}, or null",
            )
        return layer

    @property
    def retrieves(self) -> bool:
        """As ``MemoryConfig.retrieves``."""
        return self.retrieved > 0

    @property
    def relative_times(self) -> bool:
        """As ``MemoryConfig.relative_times``."""
        return True

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        if self.key_layer is not None and self.keys != "attention":
            raise ValueError(f"key_layer is read by keys `attention` only, not by `{self.keys}`")
        if self.alignment and not self.sink:
            raise ValueError("alignment needs a sink, whose means and deviations retrieved frames are moved to")
        return self

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Positions among the candidates and similarities of the chosen frames, both [B, K], K <= ``retrieved``."""
        raise NotImplementedError(f"the strategy `{self.strategy}` does not choose frames")


STRATEGIES: dict[str, type[MemoryConfig]] = {}
Strategy = TypeVar("Strategy", bound=MemoryConfig)


def register(strategy: type[Strategy]) -> type[Strategy]:
    """Enter a strategy into the registry, under the name that its field ``strategy`` allows."""
    (name,) = get_args(strategy.model_fields["strategy"].annotation)
    STRATEGIES[name] = strategy
    return strategy


def parse_memory(content: Any) -> MemoryConfig:
    """A memory configuration from raw content, discriminated by ``strategy``; raises pydantic's ValidationError."""
    if isinstance(content, MemoryConfig):
        return content
    if isinstance(content, dict) and isinstance(name := content.get("strategy"), str) and name in STRATEGIES:
        require_kinds(STRATEGIES[name], content)
    union: Any = Annotated[Union[tuple(STRATEGIES.values())], Field(discriminator="strategy")]  # noqa: UP007
    return TypeAdapter[MemoryConfig](union).validate_python(content)


def fields_for(content: dict[str, Any], strategy: str) -> dict[str, Any]:
    """Raw content under another strategy: parameters that it does not have are left out."""
    known = STRATEGIES[strategy].model_fields
    return {**{name: value for name, value in content.items() if name in known}, "strategy": strategy}


@register
class SlidingWindow(MemoryConfig):
    """The plain sliding window: nothing is retrieved."""

    strategy: Literal["none"] = "none"


@register
class MeanSink(MemoryConfig):
    """The plain window, whose sink is a running mean of all that left it (EMA-Sink, Reward Forcing, arXiv 2512.04678).

    Each frame that leaves the window is averaged into a frame of the sink, its keys (not rotated) and values token by
    token, with the weight 1 - ``decay``. The first frame after the sink goes into its first frame, the next into the
    next, and so on in turns. So with a sink as long as a block the frames of a block go into one each, as in the paper.
    The sink stays in the first slots of the window, and times are those of slots.
    """

    strategy: Literal["mean-sink"] = "mean-sink"
    window: int = Field(default=12, gt=0, description="frames attended, own block included")
    sink: int = Field(default=3, gt=0, description="first frames of the video, which later ones are averaged into")
    decay: float = Field(
        default=0.999, ge=0, le=1, description="weight that the sink keeps for each frame; 1 is a sink that stays"
    )

    @property
    def relative_times(self) -> bool:
        """As ``MemoryConfig.relative_times``."""
        return True

    @property
    def sink_decay(self) -> float | None:
        """As ``MemoryConfig.sink_decay``."""
        return self.decay


@register
class Nearest(RetrievalMemory):
    """The frames most similar to the newest one, most similar first (LongLive-RAG, arXiv 2606.02553)."""

    strategy: Literal["nearest"] = "nearest"

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        return top(candidates.similarities, self.retrieved)


@register
class Successor(RetrievalMemory):
    """The frames one block after the most similar ones; recorded similarities are those of the matches."""

    strategy: Literal["successor"] = "successor"

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        frames, groups, block = candidates.frames, candidates.groups, candidates.block
        offsets = frames.new_zeros(len(frames))  # from a match to its successor; 0: the successor is no candidate
        for offset in range(1, block + 1):
            follows = frames[offset:] - frames[:-offset] == block
            if groups is not None:
                follows = follows & (groups[offset:] == groups[:-offset])
            offsets[:-offset].masked_fill_(follows, offset)
        matches = offsets.nonzero()[:, 0]
        best, similarities = top(candidates.similarities[:, matches], self.retrieved)
        return (matches + offsets[matches])[best], similarities


@register
class Prompt(RetrievalMemory):
    """The frames most similar to a draft of the block under its prompt: x0 of its first denoising step."""

    query = "draft"
    strategy: Literal["prompt"] = "prompt"

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        return top(candidates.similarities, self.retrieved)


@register
class Diverse(RetrievalMemory):
    """Maximal marginal relevance (Carbonell and Goldstein 1998): like the query, unlike the frames already chosen."""

    strategy: Literal["diverse"] = "diverse"
    relevance: float = Field(
        default=0.5, ge=0, le=1, description="weight of similarity against diversity; 1 is `nearest`"
    )

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        similarities, keys = candidates.similarities, candidates.keys
        redundancy = similarities.new_full(similarities.shape, -1.0)  # largest cosine with a chosen frame; none yet
        chosen = candidates.frames.new_empty(len(keys), min(self.retrieved, keys.shape[1]))
        taken = similarities < -float("inf")  # none yet
        for place in range(chosen.shape[1]):
            worth = self.relevance * similarities - (1 - self.relevance) * redundancy
            pick = worth.masked_fill(taken, -float("inf")).argmax(dim=1, keepdim=True)  # [B, 1]
            chosen[:, place] = pick[:, 0]
            taken = taken.scatter(1, pick, True)  # noqa: FBT003 - the value
            picked = keys.gather(1, pick[..., None].expand(-1, -1, keys.shape[2]))[:, 0]
            redundancy = redundancy.maximum(cosine_similarities(picked, keys))
        return candidates.with_similarities(chosen)


@register
class Spaced(RetrievalMemory):
    """Similar frames that lie apart in time, after GRAB of TetherCache (arXiv 2606.13035), by cosine, not attention.

    One frame after the other is chosen: the one with the largest sum of similarity and ``spacing`` times its distance
    in time to the nearest frame chosen so far, as a share of the time that the candidates span.
    """

    strategy: Literal["spaced"] = "spaced"
    spacing: float = Field(default=0.35, ge=0, le=10, description="weight of distance in time; 0 is `nearest`")

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        similarities, frames = candidates.similarities, candidates.frames
        times = frames.to(similarities.dtype)
        span = (times[-1] - times[0]).clamp_min(1)
        distance = similarities.new_ones(similarities.shape)  # to the nearest chosen frame; none yet
        chosen = frames.new_empty(len(similarities), min(self.retrieved, similarities.shape[1]))
        taken = similarities < -float("inf")  # none yet
        for place in range(chosen.shape[1]):
            worth = similarities + self.spacing * distance
            pick = worth.masked_fill(taken, -float("inf")).argmax(dim=1, keepdim=True)  # [B, 1]
            chosen[:, place] = pick[:, 0]
            taken = taken.scatter(1, pick, True)  # noqa: FBT003 - the value
            distance = distance.minimum((times - times[pick]).abs() / span)
        return candidates.with_similarities(chosen)


@register
class Gate(RetrievalMemory):
    """The nearest frames whose similarity reaches a threshold; the earliest frames fill the remaining places."""

    strategy: Literal["gate"] = "gate"
    threshold: float = Field(default=0.9, ge=-1, le=1, description="least cosine similarity")

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        similarities = candidates.similarities
        total = similarities.shape[1]
        early = similarities.new_tensor(range(-2, -2 - total, -1))  # below any cosine, falling with time
        positions, _ = top(similarities.where(similarities >= self.threshold, early), self.retrieved)
        return candidates.with_similarities(positions)


@register
class Uniform(RetrievalMemory):
    """Frames at equal distances over all candidates."""

    strategy: Literal["uniform"] = "uniform"

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        total = len(candidates.frames)
        count = min(self.retrieved, total)
        middles = candidates.frames.new_tensor([(2 * place + 1) * total // (2 * count) for place in range(count)])
        return candidates.with_similarities(middles.expand(len(candidates.keys), -1))


@register
class Random(RetrievalMemory):
    """Random frames, drawn for each block: the control for the other strategies."""

    strategy: Literal["random"] = "random"

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        positions, _ = top(candidates.draw(), self.retrieved)
        return candidates.with_similarities(positions)


@register
class DeepSink(RetrievalMemory):
    """The earliest candidates: together with the sink, a longer sink."""

    strategy: Literal["deep-sink"] = "deep-sink"

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``."""
        count = min(self.retrieved, len(candidates.frames))
        earliest = candidates.frames.new_tensor(range(count))
        return candidates.with_similarities(earliest.expand(len(candidates.keys), -1))
