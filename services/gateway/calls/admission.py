"""A call's way to its slots: at once if there are some, else through the line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from services.gateway.calls.events import HasRoom, Queued
from services.gateway.calls.origin import Origin
from services.gateway.calls.resources import Resources
from services.gateway.path.audio import Pcm
from services.gateway.path.pipeline import Rows
from services.mesh.errors import MeshError, NoFreeSlot


async def rows_in_turn(resources: Resources, origin: Origin, call_id: str, first_sequence: int, past: Sequence[Pcm],
                       check: Callable[[], None], begin: Callable[[], AsyncIterator[HasRoom]] | None = None
                       ) -> AsyncGenerator[Queued | HasRoom | Rows, None]:
    """The call's position in the line, whenever it changes, as long as it must wait; at last its rows, which are the
    taker's to close. The encoder's has heard `past`, which begins with the frame first_sequence.

    `check` raises when it will not be here that the caller gets a slot. `begin` is gone through before each try to take
    one: it tells the caller, and learns how the call begins. Raises MeshError.
    """
    line, fleet, model, overload = resources.line, resources.fleet, origin.model, resources.overload

    def free() -> int:
        check()
        return 0 if overload.refuses and not origin.ahead else fleet.slots_free(model)

    async def take() -> AsyncIterator[HasRoom | Rows]:
        if begin is not None:
            async for has_room in begin():
                yield has_room
        if past or origin.history.steps or origin.history.prompt is not None:
            await asyncio.sleep(overload.opening_waits_s())
        try:
            yield await Rows.open(fleet, model, origin.session_id, origin.sampling, origin.history, first_sequence,
                                  past)
        except MeshError as error:
            if error.reason == NoFreeSlot.reason:  # also when it was a replica that said so
                raise NoFreeSlot(error.message) from None
            raise

    # A caller that was cut off does not wait for new callers. Who is to be told that there is room must not hear it in
    # vain.
    if (origin.ahead or not await line.length(model.model_id)) and (begin is None or free()):
        with contextlib.suppress(NoFreeSlot):
            async for taken in take():
                yield taken
            return
    await origin.wait()
    async with line.join(model.model_id, call_id, ahead=origin.ahead) as ticket:
        while not ticket.served:
            async for queued in ticket.turns(free):
                yield queued
            with contextlib.suppress(NoFreeSlot):  # another caller was faster
                async for taken in take():
                    if isinstance(taken, Rows):
                        rows, ticket.served = taken, True
                    else:
                        yield taken
    yield rows
