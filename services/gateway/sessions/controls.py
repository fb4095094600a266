"""What was decided from outside about a session's steps: kept with them, to be repeated wherever the session goes on.

Old steps are forgotten, but not what is still in force of their controls: settings last, and a text takes its time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from moshimesh.lm.v1 import lm_pb2

# What a text takes at the most: each word has a byte at least, is two frames longer than its tokens or characters, and
# may be followed by a pause of five frames (services/lm/saying.py). The longest delay is within that, too.
STEPS_PER_SAID_BYTE = 8


class Controls:
    """The controls of a session's kept steps, and what is in force of those before."""

    def __init__(self) -> None:
        self.ahead: dict[int, lm_pb2.StepControls] = {}
        """Of steps that were forgotten when the session went back, by the caller's number of their frame: they take
        effect there again."""
        self._kept: list[lm_pb2.StepControlsAt] = []  # by step

    def append(self, step: int, controls: lm_pb2.StepControls) -> None:
        """Add those of the latest step."""
        self._kept.append(lm_pb2.StepControlsAt(step=step, controls=controls))

    def extend(self, controls: Iterable[lm_pb2.StepControlsAt], steps: int) -> None:
        """Add those of a journal, of a session with so many steps. Raises ValueError when they are out of order."""
        added = list(controls)
        order = [self._kept[-1].step if self._kept else -1, *(at.step for at in added), steps]
        if any(one >= other for one, other in itertools.pairwise(order)):
            raise ValueError(f"{len(added)} controls do not follow in order that of step {order[0]}, of {steps} steps")
        self._kept += added

    def by_step(self) -> dict[int, lm_pb2.StepControls]:
        """Those of each step that has any."""
        return {at.step: at.controls for at in self._kept}

    def since(self, step: int) -> list[lm_pb2.StepControlsAt]:
        """What is in force of the steps before this one, and then those of the others."""
        if not self._kept:  # nearly always
            return []
        before = [at for at in self._kept if at.step < step]
        return [*_in_force(before, step), *self._kept[len(before):]]

    def forget_before(self, step: int) -> None:
        """Keep no more of the steps before this one than what is in force."""
        self._kept = self.since(step)

    def forget_from(self, step: int, sequence_of: Callable[[int], int]) -> None:
        """The session goes back to before this step; `sequence_of` a step is the caller's number of its frame."""
        while self._kept and self._kept[-1].step >= step:
            at = self._kept.pop()
            self.ahead[sequence_of(at.step)] = at.controls


def merged(before: lm_pb2.StepControls, after: lm_pb2.StepControls) -> lm_pb2.StepControls:
    """Controls that do what these do one after the other."""
    both = lm_pb2.StepControls()
    both.CopyFrom(before)
    if after.WhichOneof("run"):
        both.ClearField("run")
    both.MergeFrom(after)
    return both


def _in_force(controls: Sequence[lm_pb2.StepControlsAt], step: int) -> list[lm_pb2.StepControlsAt]:
    """What still counts at a step of the controls before it, as one: the sampling, and a run that is not over."""
    if not controls:
        return []
    whole = lm_pb2.StepControlsAt()
    for at in controls:
        whole.controls.CopyFrom(merged(whole.controls, at.controls))
        if at.controls.WhichOneof("run") or not whole.controls.WhichOneof("run"):
            whole.step = at.step  # sampling that came after a run may as well have come with it
    if whole.step + _lasts(whole.controls) <= step:
        whole.controls.ClearField("run")
    return [whole]


def _lasts(controls: lm_pb2.StepControls) -> int:
    """For how many steps, at most, a run may have something to say about tokens, delays aside."""
    return (controls.forced.frames or 1) + STEPS_PER_SAID_BYTE * (len(controls.say.text.encode()) + 1)
