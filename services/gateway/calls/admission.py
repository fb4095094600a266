"""A call's way to its slots: at once if there are some, else through the line."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

from services.gateway.calls.events import Queued
from services.gateway.calls.origin import Origin
from services.gateway.calls.resources import Resources
from services.gateway.path.audio import Pcm
from services.gateway.path.pipeline import Rows
from services.mesh.errors import MeshError, NoFreeSlot


async def rows_in_turn(resources: Resources, origin: Origin, call_id: str, first_sequence: int, past: Sequence[Pcm],
                       check: Callable[[], None]) -> AsyncGenerator[Queued | Rows, None]:
    """The call's position in the line, whenever it changes, as long as it must wait; at last its rows, which are the
    taker's to close. The encoder's has heard `past`, which begins with the frame first_sequence.

    `check` raises when it will not be here that the caller gets a slot. Raises MeshError.
    """
    line, fleet, model = resources.line, resources.fleet, origin.model

    def free() -> int:
        check()
        return fleet.slots_free(model)

    async def open_rows() -> Rows:
        try:
            return await Rows.open(fleet, model, origin.session_id, origin.sampling, origin.history, first_sequence,
                                   past)
        except MeshError as error:
            if error.reason == NoFreeSlot.reason:  # also when it was a replica that said so
                raise NoFreeSlot(error.message) from None
            raise

    # A caller that was cut off does not wait for new callers.
    if origin.ahead or not await line.length(model.model_id):
        try:
            rows = await open_rows()
        except NoFreeSlot:
            pass
        else:
            yield rows
            return
    await origin.wait()
    async with line.join(model.model_id, call_id, ahead=origin.ahead) as ticket:
        while not ticket.served:
            async for queued in ticket.turns(free):
                yield queued
            with contextlib.suppress(NoFreeSlot):  # another caller was faster
                rows = await open_rows()
                ticket.served = True
    yield rows
