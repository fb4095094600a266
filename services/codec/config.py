"""What can be set about the codec service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.mesh.config import EngineConfig, Port


class CodecConfig(EngineConfig):
    """Flags of `python -m services.codec`; each is also MOSHIMESH_NAME in the environment."""

    port: Port = Field(50051, description="port to listen on; 0 takes a free one")
    checkpoint: str = Field("checkpoints/talker", description="folder or hub id of a checkpoint in Moshi's format")
    device: str = Field("cpu", description="torch device: cpu, cuda, cuda:1 ...")
    slots: int = Field(8, ge=1, le=256, description="sessions that can encode, and as many that can decode, at once")
    threads: int = Field(1, ge=1, le=64, description="CPU threads of one step")
    codec_precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="of a GPU's products; fp32 is exact, the others are faster")
