"""The language model's engine: many sessions' steps as one, on one device."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.lm import selfcheck
from services.lm.delays import DelayLine, Ints
from services.lm.directing import DRAWN, Directed, DirectedAt, ForcedFrames
from services.lm.gpus import gpu_named
from services.lm.graphed import GraphedNetwork
from services.lm.linear import Packing, Precision
from services.lm.network import Bends, Draws, Network, Shapes
from services.lm.sampling import MOST_PENALISED, Sampling
from services.lm.selfcheck import Way
from services.lm.sizing import (
    KvPrecision,
    new_rings,
    streamed_bytes,
    usual_kv_precision,
    usual_precision,
    weights_bytes,
)
from services.lm.traced import TracedNetwork
from services.mesh.finite import check_finite

PREFILL_FRAMES = 128
"""Frames of a history that go through the model at once: more gain nothing, and their scores take memory."""

TEXT_FRAMES = 1024
"""Frames whose text a row remembers, to find what is repeated: 82 s, and no more than the context, so that a row which
is rebuilt remembers the same."""


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
    precision: Precision
    kv_precision: KvPrecision
    floor_ms: float
    """Of a step of all slots with full windows, by the memory's peak bandwidth; 0 where that is not known."""

    @property
    def kv_bytes_per_slot(self) -> int:
        """The ring of one slot: it is allocated whole, whatever the length of the call."""
        return self.kv_bytes_per_frame * self.context_frames


@dataclass(frozen=True)
class RowCopy:
    """What a row knows after its first steps."""

    steps: int
    rings: Tensor
    line: Ints
    texts: Ints


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
        kv_precision = kv_precision or usual_kv_precision(packing)
        rings = new_rings(lm, slots, place, kv_precision)
        gpu = gpu_named(torch.cuda.get_device_name(place)) if place.type == "cuda" else None
        read_bytes = streamed_bytes(self._network) + rings.nbytes
        self.facts = LmFacts(
            user_codebooks=lm.n_q - lm.dep_q, own_codebooks=lm.dep_q, cardinality=lm.card,
            text_cardinality=self._network.cardinalities[0], delay_frames=max(lm.delays),
            context_frames=lm.context, weights_bytes=weights_bytes(self._network),
            kv_bytes_per_frame=rings[:, :, 0, :, 0].numel() * rings.element_size(),
            silent_text_tokens=(lm.text_padding_token_id, lm.end_of_text_padding_id), precision=packing.precision,
            kv_precision=kv_precision, floor_ms=read_bytes / gpu.bytes_per_s * 1e3 if gpu else 0)
        self._line = DelayLine(
            slots, lm.delays, lm.dep_q, [lm.text_initial_token_id] + [lm.initial_token_id] * lm.n_q)
        self._draws = Draws(
            torch.zeros(slots, 2), torch.ones(slots, 2, dtype=torch.int64), torch.zeros(slots, dtype=torch.int64))
        self._texts: Ints = np.full((slots, min(TEXT_FRAMES, lm.context)), DRAWN, np.int64)
        self._own_delays = lm.delays[: 1 + lm.dep_q]
        self._forced: dict[int, ForcedFrames] = {}  # by row, as long as anything is forced there
        self._shaped: dict[int, Sampling] = {}  # by row, where the text's logits are changed
        self._rings = rings
        self.way = "traced"
        """How it steps: on a GPU the fastest way that agrees with the plain one."""
        self.refused_ways: tuple[str, ...] = ()
        """Faster ones that do not agree, or do not run."""
        self._generate = TracedNetwork(self._network, rings) if place.type == "cpu" else self._choose(selfcheck.ways)

    def _choose(self, ways: Callable[[Network, Tensor], Sequence[Way]]) -> GraphedNetwork:
        """The fastest way to step that agrees with the plain one, of those from the fastest to the plain one."""
        products = selfcheck.choose_products(self._network)
        chosen = selfcheck.choose(ways(self._network, self._rings), self._rings, len(self._own_delays)
                                  + self.facts.user_codebooks, min(self._network.cardinalities))
        self.way, self.refused_ways = chosen.name, (*products, *chosen.refused)
        return chosen.generate

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
        self._texts[row] = DRAWN
        self._forced.pop(row, None)
        self._sample(row, sampling)

    def direct(self, row: int, directed: Directed, step: int | None = None) -> None:
        """Decide about an open row's tokens from its next step on, or as if it had been at an earlier one."""
        if directed.sampling is not None:
            self._sample(row, directed.sampling)
        if directed.tokens is not None:
            frame = int(self._line.positions[row]) if step is None else step
            self._forced.setdefault(row, ForcedFrames(self._own_delays)).put(frame, directed.tokens)

    def _sample(self, row: int, sampling: Sampling) -> None:
        # Top-k 0 keeps every entry.
        top_k = [min(wanted or entries, entries) for wanted, entries in (
            (sampling.text_top_k, self.facts.text_cardinality), (sampling.audio_top_k, self.facts.cardinality))]
        self._draws.temperature[row] = torch.tensor([sampling.text_temperature, sampling.audio_temperature])
        self._draws.top_k[row] = torch.tensor(top_k)
        self._draws.seed[row] = sampling.seed
        self._shaped.pop(row, None)
        if sampling.shapes_text:
            self._shaped[row] = sampling

    def prefill(self, row: int, codes: Ints, tokens: Ints, first_step: int = 0,
                controls: Sequence[DirectedAt] = ()) -> Iterator[None]:
        """Bring an open row to where a session was that sent codes [frames, user_codebooks] and got tokens
        [frames, 1 + own_codebooks] for them from `step`, after `first_step` steps that are not named any more, and that
        was directed by `controls`, in their order.

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
        self._remember(row, first_step, generated[:known, 0])
        waiting = deque(controls)
        for frame in range(known, len(codes) + 1):
            while waiting and waiting[0].step <= first_step + frame:
                at = waiting.popleft()
                self.direct(row, at.directed, at.step)
            if frame < len(codes):
                self.step([row], codes[frame : frame + 1])
                self._line.amend(row, generated[frame])

    def copy_row(self, row: int) -> RowCopy:
        """What an open row knows, its sampling and what is forced aside; of a row with less than a context's steps."""
        steps = int(self._line.positions[row])
        return RowCopy(steps, self._rings[:, :, row, :, :steps].clone(), self._line.copy_row(row),
                       self._texts[row].copy())

    def restore_row(self, row: int, copy: RowCopy) -> None:
        """Bring an open row to where another one was."""
        with torch.inference_mode():
            self._rings[:, :, row, :, :copy.steps] = copy.rings
        self._line.restore_row(row, copy.steps, copy.line)
        self._texts[row] = copy.texts

    def _remember(self, row: int, first_step: int, texts: Ints) -> None:
        """Take in the text tokens [frames] of a row's steps from `first_step` on."""
        length = self._texts.shape[1]
        steps = np.arange(len(texts))[-length:]
        self._texts[row, (first_step + steps) % length] = texts[steps]

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
        positions = self._line.positions
        # Nearly no step is directed, and then nothing is done about it.
        directed = not (self._forced.keys().isdisjoint(rows) and self._shaped.keys().isdisjoint(rows))
        bends = self._bends(index) if directed else None
        generated = self._generate(tokens, index, positions, self._draws, bends)
        self._texts[index, positions[index] % self._texts.shape[1]] = generated[:, 0]
        answer = np.empty((len(rows), 1 + facts.own_codebooks), np.int64)
        answer[order] = self._line.take(index, generated)
        return answer

    def _bends(self, rows: Ints) -> Bends:
        """What is decided about the next step's tokens of rows [n]."""
        forced = np.full((len(rows), len(self._own_delays)), DRAWN, np.int64)
        bonus, penalty = np.zeros((len(rows), 1), np.float32), np.ones((len(rows), 1), np.float32)
        recent = np.zeros((len(rows), MOST_PENALISED), np.int64)
        for index, row in enumerate(rows.tolist()):
            position = int(self._line.positions[row])
            if (frames := self._forced.get(row)) is not None:
                forced[index] = frames.at(position)
                if frames.over(position + 1):
                    del self._forced[row]
            if (sampling := self._shaped.get(row)) is not None:
                bonus[index] = sampling.text_temperature * sampling.padding_bonus
                said = self._last_texts(row, position, sampling.repetition_penalty_context)
                if len(said):
                    penalty[index] = sampling.repetition_penalty
                    recent[index] = np.resize(said, MOST_PENALISED)
        return Bends(*map(torch.from_numpy, (forced, bonus, penalty, recent)))

    def _last_texts(self, row: int, position: int, most: int) -> Ints:
        """A row's last text tokens before a position, [up to most], without padding."""
        length = self._texts.shape[1]
        newest_first = self._texts[row, (position - 1 - np.arange(length)) % length]
        spoken = (newest_first >= 0) & ~np.isin(newest_first, self.facts.silent_text_tokens)
        texts: Ints = newest_first[spoken][:most]
        return texts
