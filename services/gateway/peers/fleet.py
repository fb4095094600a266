"""All replicas that this gateway knows, of the codec and of the language model, taken together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.gateway.peers.models import Model, known_models, served_models
from services.gateway.peers.replicas import DECODE, ENCODE, STEP, Replicas
from services.mesh.errors import MeshError, PeerLost, UnknownModel


@dataclass(frozen=True)
class Fleet:
    """The codec's and the language model's replicas."""

    codec: Replicas
    lm: Replicas

    def models(self) -> Sequence[Model]:
        """The models that conversations can have, at least one. Raises PeerLost, ModelMismatch."""
        return served_models(self.codec, self.lm)

    async def model(self, model_id: str = "") -> Model:
        """The model of this id; if that is empty, the one with the most free slots.

        Raises:
            PeerLost: a service that it needs has no replica that answers.
            ModelMismatch: no model's codec is there.
            UnknownModel: no replica serves it.
        """
        try:
            return self._find(model_id)
        except MeshError:  # as of the last poll; a replica may just have come back
            await self.refresh()
            return self._find(model_id)

    def _find(self, model_id: str) -> Model:
        """The same, as of the last poll."""
        served = self.models()
        if not model_id:
            return max(served, key=self.slots_free)
        for model in served:
            if model.model_id == model_id:
                return model
        if model_id in (model.model_id for model in known_models(self.lm)):
            raise PeerLost(f"no codec replica that serves the codec of {model_id} answers", peer=self.codec.role)
        names = ", ".join(model.model_id for model in served)
        raise UnknownModel(f"nobody serves the model {model_id[:80]!r}; there is {names}", served=names)

    async def refresh(self, max_age_s: float = 0.0) -> None:
        """Ask the replicas how they are now, unless the last answers are less than `max_age_s` old."""
        await asyncio.gather(self.codec.refresh(max_age_s), self.lm.refresh(max_age_s))

    def slots_total(self, model: Model) -> int:
        """Conversations that this model's replicas can hold."""
        return min(pool.total(method, weights_id) for pool, method, weights_id in _slots(self, model))

    def slots_free(self, model: Model) -> int:
        """Conversations that they could take now, besides those that they hold."""
        return min(pool.free(method, weights_id) for pool, method, weights_id in _slots(self, model))


def _slots(fleet: Fleet, model: Model) -> Iterator[tuple[Replicas, str, str]]:
    """A kind of slot that a conversation needs: for which method, and of which weights."""
    yield fleet.codec, ENCODE.name, model.codec_id
    yield fleet.lm, STEP.name, model.model_id
    yield fleet.codec, DECODE.name, model.codec_id
