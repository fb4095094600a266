"""How one session wants its tokens drawn."""

from dataclasses import dataclass

MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = 10.0  # beyond it, every draw is practically uniform
MAX_PADDING_BONUS = 10.0  # e^10: nothing but padding, or none
PENALTIES = (0.1, 10.0)
MOST_PENALISED = 128  # text tokens; twice what Moshi's clients ask for


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperatures, top-k and seed of one session. Temperature 0 is greedy, top-k 0 keeps every entry.

    The text's padding bonus and repetition penalty are those of Moshi's Rust server (pad_mult and repetition_penalty of
    lm_generate_multistream.rs), where 0 and 1 change nothing. The defaults are those of Moshi's own servers.
    """

    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250
    seed: int = 0
    padding_bonus: float = 0.0
    repetition_penalty: float = 1.0
    repetition_penalty_context: int = 64

    @property
    def shapes_text(self) -> bool:
        """Whether the text's logits are changed before a token is drawn."""
        return self.padding_bonus != 0 or (self.repetition_penalty != 1 and self.repetition_penalty_context > 0)

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_TEMPERATURE:  # NaN is refused, too
                raise ValueError(f"{name} must be between 0 and {MAX_TEMPERATURE:g}, got {value}")
        for name in ("text_top_k", "audio_top_k"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must be at least 0 (0 keeps every entry), got {value}")
        if not -MAX_PADDING_BONUS <= self.padding_bonus <= MAX_PADDING_BONUS:
            raise ValueError(f"padding_bonus must be between {-MAX_PADDING_BONUS:g} and {MAX_PADDING_BONUS:g}, got "
                             f"{self.padding_bonus}")
        if not PENALTIES[0] <= self.repetition_penalty <= PENALTIES[1]:
            raise ValueError(f"repetition_penalty must be between {PENALTIES[0]:g} and {PENALTIES[1]:g}, got "
                             f"{self.repetition_penalty}")
        if not 0 <= self.repetition_penalty_context <= MOST_PENALISED:
            raise ValueError(f"repetition_penalty_context must be between 0 and {MOST_PENALISED}, got "
                             f"{self.repetition_penalty_context}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")
