"""All replicas that this gateway knows, of the codec and of the language model, taken together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.gateway.peers.replicas import DECODE, ENCODE, STEP, Replicas, common_model
from services.mesh.errors import MeshError


@dataclass(frozen=True)
class Fleet:
    """The codec's and the language model's replicas."""

    codec: Replicas
    lm: Replicas

    async def model(self) -> str:
        """The model of new conversations. Raises PeerLost, ModelMismatch."""
        try:
            return common_model((self.codec, self.lm))
        except MeshError:  # as of the last poll; a replica may just have come back
            await self.refresh()
            return common_model((self.codec, self.lm))

    async def refresh(self, max_age_s: float = 0.0) -> None:
        """Ask the replicas how they are now; answers that are `max_age_s` old will do."""
        await asyncio.gather(self.codec.refresh(max_age_s), self.lm.refresh(max_age_s))

    def slots_total(self, model_id: str) -> int:
        """Conversations that this model's replicas can hold."""
        return min(pool.total(method, model_id) for pool, method in self._slots())

    def slots_free(self, model_id: str) -> int:
        """Conversations that they could hold besides those of now."""
        return min(pool.free(method, model_id) for pool, method in self._slots())

    def _slots(self) -> tuple[tuple[Replicas, str], ...]:
        """What a conversation takes a slot of."""
        return (self.codec, ENCODE.name), (self.lm, STEP.name), (self.codec, DECODE.name)
