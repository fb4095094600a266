"""What can be set about the gateway."""

from __future__ import annotations

from pydantic import Field

from services.mesh.config import Port, ServiceConfig


class GatewayConfig(ServiceConfig):
    """Flags of `python -m services.gateway`; each is also MOSHIMESH_NAME in the environment."""

    port: Port = Field(50050, description="port to listen on; 0 takes a free one")
    codec: str = Field("localhost:50051", description="host:port of the codec service")
    lm: str = Field("localhost:50052", description="host:port of the language model service")
    redis_url: str = Field("redis://localhost:6379/0", description="redis://, rediss:// or unix:// URL of Redis")
    peers_wait_s: float = Field(120.0, ge=0, le=3600, description="how long to wait at the start for codec and lm to "
                                                                  "be ready")
    idle_s: float = Field(60.0, gt=0, le=3600, description="end a call whose caller has sent no audio for this long")
    trace_one_in: int = Field(1, ge=1, description="trace one in this many frames when there is an OTLP endpoint")
