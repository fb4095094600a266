"""How one session wants its tokens drawn."""

from dataclasses import dataclass

MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = 10.0  # beyond it, every draw is practically uniform


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperatures, top-k and seed of one session. Temperature 0 is greedy, top-k 0 keeps every entry.

    The defaults are those of Moshi's own `LMGen` and server.
    """

    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_TEMPERATURE:  # NaN is refused, too
                raise ValueError(f"{name} must be between 0 and {MAX_TEMPERATURE:g}, got {value}")
        for name in ("text_top_k", "audio_top_k"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must be at least 0 (0 keeps every entry), got {value}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")
