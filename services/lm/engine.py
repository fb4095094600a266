"""The language model's engine: many sessions' steps as one, on one device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from services.lm.delays import DelayLine, Ints
from services.lm.graphed import GraphedNetwork
from services.lm.linear import Packing, Precision
from services.lm.network import Draws, Network, Shapes
from services.lm.sampling import Sampling
from services.lm.sizing import KvPrecision, new_rings, usual_kv_precision, usual_precision, weights_bytes
from services.lm.traced import TracedNetwork
from services.mesh.finite import check_finite

PREFILL_FRAMES = 128
"""Frames of a history that go through the model at once: more gain nothing, and their scores take memory."""


@dataclass(frozen=True)
class LmFacts:
    """What the loaded model is, and what a session of it costs in memory."""

    user_codebooks: int
    own_codebooks: int
    cardinality: int
    text_cardinality: int
    delay_frames: int
    context_frames: int
    weights_bytes: int
    kv_bytes_per_frame: int
    silent_text_tokens: tuple[int, int]
    """Those of padding and of its end, which say nothing."""

    @property
    def kv_bytes_per_slot(self) -> int:
        """The ring of one slot: it is allocated whole, whatever the length of the call."""
        return self.kv_bytes_per_frame * self.context_frames


class LmEngine:
    """Steps sessions of a Moshi model; every session has a row.

    All methods belong to one thread. Nothing here is shared between rows but the weights: a row's tokens depend on
    its own codes and sampling alone.
    """

    def __init__(self, lm: Any, slots: int, *, device: str = "cpu", precision: Precision | None = None,
                 kv_precision: KvPrecision | None = None) -> None:
        """`lm` is a `moshi.models.LMModel`, wherever it was loaded. Its weights are copied to `device`, repacked; it is
        not needed any more then, so a model that only just fits on a GPU is best loaded on the CPU.

        `precision` is that of the weights: by default fp32 on a CPU and bf16 elsewhere. `kv_precision` is that of the
        keys and values: by default fp32 on a CPU and beside fp32 weights, and bf16 otherwise.
        """
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self.slots = slots
        place = torch.device(device)
        packing = Packing(place, precision or usual_precision(place))
        with torch.no_grad():
            self._network = Network(lm, packing).eval()
        rings = new_rings(lm, slots, place, kv_precision or usual_kv_precision(packing))
        self.facts = LmFacts(
            user_codebooks=lm.n_q - lm.dep_q, own_codebooks=lm.dep_q, cardinality=lm.card,
            text_cardinality=self._network.cardinalities[0], delay_frames=max(lm.delays),
            context_frames=lm.context, weights_bytes=weights_bytes(self._network),
            kv_bytes_per_frame=rings[:, :, 0, :, 0].numel() * rings.element_size(),
            silent_text_tokens=(lm.text_padding_token_id, lm.end_of_text_padding_id))
        self._line = DelayLine(
            slots, lm.delays, lm.dep_q, [lm.text_initial_token_id] + [lm.initial_token_id] * lm.n_q)
        self._draws = Draws(
            torch.zeros(slots, 2), torch.ones(slots, 2, dtype=torch.int64), torch.zeros(slots, dtype=torch.int64))
        self._rings = rings
        self._generate = (TracedNetwork if place.type == "cpu" else GraphedNetwork)(self._network, rings)

    def warm_up(self) -> None:
        """Make the first steps slow now, before there are sessions, rather than while a caller waits.

        Raises NotFinite for a checkpoint that computes nothing.
        """
        self._check_first_steps()
        usual = Sampling()
        if isinstance(self._generate, GraphedNetwork):
            self._generate.prepare((usual.text_top_k, usual.audio_top_k))
        for sampling in (usual, Sampling(text_temperature=0, audio_temperature=0)):
            self.open(0, sampling)
            self.step([0], np.zeros((1, self.facts.user_codebooks), np.int64))

    @torch.inference_mode()
    def _check_first_steps(self) -> None:
        """Look at what every part of the network makes of a few frames: tokens alone would not show a NaN."""
        def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, inputs, output: check_finite(output, name)

        parts = [(self._network.temporal, "the outputs of the main transformer"),
                 (self._network.heads, "the logits of the text"),
                 *((step, f"the logits of codebook {k}") for k, step in enumerate(self._network.depth))]
        # The shapes of a GPU's steps; a CPU takes them, too.
        shapes = Shapes(min(self.facts.delay_frames + 2, self.facts.context_frames), (1, 1))
        hooks = [part.register_forward_hook(look(name)) for part, name in parts]
        try:
            self._line.open(0)
            row = np.zeros(1, np.int64)
            for _ in range(self.facts.delay_frames + 2):  # from then on, every stream's tokens are real ones
                tokens = self._line.feed(row, np.zeros((1, self.facts.user_codebooks), np.int64))
                heard, at, position = (torch.from_numpy(values).to(self._rings.device)
                                       for values in (tokens, row, self._line.positions[row]))
                self._line.take(row, self._network(heard, self._rings, at, position, shapes=shapes).cpu().numpy())
        finally:
            for hook in hooks:
                hook.remove()

    def open(self, row: int, sampling: Sampling) -> None:
        """Clear a row and give it its sampling."""
        if not 0 <= row < self.slots:
            raise ValueError(f"row must be between 0 and {self.slots - 1}, got {row}")
        self._line.open(row)
        # Top-k 0 keeps every entry.
        top_k = [min(wanted or entries, entries) for wanted, entries in (
            (sampling.text_top_k, self.facts.text_cardinality), (sampling.audio_top_k, self.facts.cardinality))]
        self._draws.temperature[row] = torch.tensor([sampling.text_temperature, sampling.audio_temperature])
        self._draws.top_k[row] = torch.tensor(top_k)
        self._draws.seed[row] = sampling.seed

    def prefill(self, row: int, codes: Ints, tokens: Ints, first_step: int = 0) -> Iterator[None]:
        """Bring an open row to where a session was that sent codes [frames, user_codebooks] and got tokens
        [frames, 1 + own_codebooks] for them from `step`, after `first_step` steps that are not named any more.

        Many times faster than stepping, and in chunks, one for each item: other rows may be stepped in between. Within
        the context the session goes on with the tokens it would have had; in a longer one the oldest keys had
        themselves seen older frames, so it only goes on nearly the same.
        """
        facts = self.facts
        if codes.shape != (len(codes), facts.user_codebooks) or tokens.shape != (len(codes), 1 + facts.own_codebooks):
            raise ValueError(f"codes and tokens must be [frames, {facts.user_codebooks}] and [frames, "
                             f"{1 + facts.own_codebooks}], got {list(codes.shape)} and {list(tokens.shape)}")
        device = self._rings.device
        self._line.open(row)
        self._line.positions[row] = first_step
        generated = self._line.generated(tokens)
        # What the last steps generated has not all been answered: they are made again, at the end.
        known = max(len(codes) - facts.delay_frames, 0)
        # The first inputs of a history without a beginning depend on what came before it. The ring can't hold more than
        # the context, and a chunk must not overwrite keys that its own first steps still need.
        first = max(known - facts.context_frames, facts.delay_frames + 1 if first_step else 0)
        positions = first_step + torch.arange(known, device=device)
        held = torch.full((facts.context_frames,), first_step + known, device=device)
        held = held.scatter(0, positions[first:] % facts.context_frames, positions[first:])
        if first_step:  # the slots of steps that are not named are attended to, too: nothing of another session's there
            with torch.inference_mode():
                self._rings[:, :, row] = 0
        for begin in range(0, known, PREFILL_FRAMES):
            frames = range(begin, min(begin + PREFILL_FRAMES, known))
            # The row's position is then right after the chunk, where a graph's step of other rows may write.
            inputs = self._line.replay(row, codes[begin : frames.stop], generated[begin : frames.stop])
            named = slice(max(first, begin), frames.stop)
            if named.start < named.stop:
                with torch.inference_mode():
                    self._network.prefill(torch.from_numpy(inputs[named.start - begin :]).to(device), self._rings, row,
                                          positions[named], held[: first_step + frames.stop])
            yield
        for frame in range(known, len(codes)):
            self.step([row], codes[frame : frame + 1])
            self._line.amend(row, generated[frame])

    def step(self, rows: Sequence[int], codes: NDArray[np.int64]) -> Ints:
        """One frame of each named row: codes int64 [n, user_codebooks] -> tokens int64 [n, 1 + own_codebooks].

        Tokens are text, then own codes; all `delays.UNGENERATED` while the row's delay line fills. Rows not named
        are untouched.
        """
        facts = self.facts
        if codes.shape != (len(rows), facts.user_codebooks):
            raise ValueError(f"codes must be [{len(rows)}, {facts.user_codebooks}], got {list(codes.shape)}")
        if len(set(rows)) != len(rows) or not all(0 <= row < self.slots for row in rows):
            raise ValueError(f"rows must be different and between 0 and {self.slots - 1}, got {list(rows)}")
        if not len(rows):
            return np.empty((0, 1 + facts.own_codebooks), np.int64)
        if codes.min() < 0 or codes.max() >= facts.cardinality:
            raise ValueError(f"codes must be between 0 and {facts.cardinality - 1}, "
                             f"got {codes.min()} to {codes.max()}")
        order = np.argsort(rows)  # rows side by side in memory are attended to in one go
        index = np.array(rows)[order]
        tokens = self._line.feed(index, codes[order])
        answer = np.empty((len(rows), 1 + facts.own_codebooks), np.int64)
        answer[order] = self._line.take(index, self._generate(tokens, index, self._line.positions, self._draws))
        return answer
