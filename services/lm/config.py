"""What can be set about the language model service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from services.mesh.config import EngineConfig, Port

MOST_SLOTS = 256


class LmConfig(EngineConfig):
    """Flags of `python -m services.lm`; each is also MOSHIMESH_NAME in the environment."""

    port: Port = Field(50052, description="port to listen on; 0 takes a free one")
    checkpoint: str = Field("checkpoints/talker", description="folder or hub id of a checkpoint in Moshi's format")
    device: str = Field("cpu", description="torch device: cpu, cuda, cuda:1 ...")
    slots: Annotated[int, Field(ge=1, le=MOST_SLOTS)] | Literal["auto"] = Field(
        8, description="sessions that can step at once; auto: as many as the device's free memory holds, at most 256")
    precision: Literal["fp32", "bf16", "int8", "fp8", "int4"] | None = Field(
        None, description="of the weights; unset: fp32 on a CPU, bf16 elsewhere; fp8 needs an L4, L40S, H100 or newer")
    kv_precision: Literal["fp32", "bf16", "int8"] | None = Field(
        None, description="of what a session remembers; unset: as the weights, but at least bf16")
    context_frames: int = Field(
        0, ge=0, description="frames that a session remembers; 0: as many as the checkpoint was trained with")
    threads: int = Field(1, ge=1, le=64, description="CPU threads of one step")
