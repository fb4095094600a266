"""The models that a gateway's replicas can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.peers.replicas import Replicas
from services.mesh.errors import ModelMismatch, PeerLost


@dataclass(frozen=True, order=True)
class Model:
    """A language model, and the codec that it was trained with; several models may share one."""

    model_id: str
    codec_id: str


def known_models(lm: Replicas) -> list[Model]:
    """The models of the language model's replicas, by id, whether or not their codecs are there."""
    return sorted({Model(facts.weights_id, facts.info.codec_id) for replica in lm.answering
                   if (facts := replica.facts) is not None})


def served_models(codec: Replicas, lm: Replicas) -> Sequence[Model]:
    """The models that conversations can have, by id, at least one: some replica serves each, and some its codec.

    Raises:
        PeerLost: a service has no replica that answers.
        ModelMismatch: no model's codec is there.
    """
    for pool in (codec, lm):
        if not pool.answering:
            raise PeerLost(f"no {pool.role} replica answers", peer=pool.role)
    codecs = {replica.facts.weights_id for replica in codec.answering if replica.facts is not None}
    known = known_models(lm)
    served = [model for model in known if model.codec_id in codecs]
    if not served:
        asked = " and ".join(f"{model.model_id} speaks {model.codec_id}" for model in known)
        raise ModelMismatch(f"{asked}, but codec serves {' and '.join(sorted(codecs))}; start both with one checkpoint")
    return served
