"""What can be set about the gateway."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import CliImplicitFlag
from typing_extensions import Self

from services.mesh.config import Port, ServiceConfig, check_host, check_together


def _with_ports(targets: str) -> str:
    named = [target for target in map(str.strip, targets.split(",")) if target]
    if not named:
        raise ValueError("no address is named; write host:port, such as localhost:50051")
    for target in named:
        host, _, port = target.rpartition(":")
        if not host or "/" in target or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ValueError(f"{target!r} is not host:port, such as localhost:50051 or [::1]:50051")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError(f"{target!r}: write an IPv6 address in brackets, such as [::1]:50051")
        check_host(host)
    return targets


Targets = Annotated[str, AfterValidator(_with_ports)]


class GatewayConfig(ServiceConfig):
    """Flags of `python -m services.gateway`; each is also MOSHIMESH_NAME in the environment."""

    port: Port = Field(50050, description="port to listen on; 0 takes a free one")
    http_port: int = Field(0, ge=0, le=65535, description="port of the HTTP side: WebSockets and the page; 0: none")
    tls_cert: str = Field("", description="file with the certificate for both ports, and those between it and its CA, "
                                          "PEM; read again when it changes")
    tls_key: str = Field("", description="file with its key")
    dev_tls: CliImplicitFlag[bool] = Field(False, description="make a CA and a certificate for localhost and this "
                                           "machine's names, and serve with them; for development")
    codec: Targets = Field("localhost:50051", description="host:port of the codec replicas, separated by commas; a "
                                                          "name with several addresses stands for all of them")
    lm: Targets = Field("localhost:50052", description="host:port of the language model replicas, likewise")
    redis_url: str = Field("redis://localhost:6379/0", repr=False, description="URL of Redis (docs/sessions.md); one "
                           "with a password belongs into MOSHIMESH_REDIS_URL, since ps shows flags")
    grace_s: float = Field(120.0, ge=1, le=3600, description="how long a call that was cut off can be resumed")
    peers_wait_s: float = Field(120.0, ge=0, le=3600, description="how long to wait at the start for codec and lm to "
                                                                  "be ready")
    idle_s: float = Field(60.0, gt=0, le=3600, description="end a call whose caller has sent no audio for this long")
    failover_s: float = Field(15.0, ge=0, le=3600, description="how long a call whose codec or lm was lost waits for "
                                                               "another one; about what a restart takes")
    most_replicas: int = Field(0, ge=0, description="how many replicas of codec, and of lm, this gateway keeps "
                                                    "connections to; 0: all. 32 of hundreds, 64 of thousands")
    defragment: CliImplicitFlag[bool] = Field(False, description="move calls off the emptiest of three or more "
                                              "replicas while the others have room, so that it is empty when it is "
                                              "scaled down")
    longest_call_s: float = Field(3600.0, gt=0, description="end a call after this long")
    most_waiting: int = Field(100, ge=0, description="callers that may wait in line for a slot")
    keys_file: str = Field("", description="JSON file of API keys, made by `make key`: only callers with one of them, "
                                           "a token or a ticket may call; read again when it changes")
    jwt_issuer: str = Field("", description="let callers in with JWTs of this issuer (claim iss)")
    jwt_audience: str = Field("moshi-mesh", description="what the JWTs must be for (claim aud)")
    jwks_url: str = Field("", description="where the issuer publishes its keys, https://...; RS256, ES256 and EdDSA")
    jwt_secret_file: str = Field("", description="file with a secret that the issuer shares with this mesh; HS256")
    voices: str = Field("", description="folder of recordings (WAV, mono, 16 bits, at most 30 s) that conversations "
                                        "can begin with; a voice has the name of its file")
    calls_per_key: int = Field(0, ge=0, description="calls at once of one key, unless the file of keys says another "
                                                    "number; 0: no limit. This and those below count over all gateways")
    calls_per_minute_per_key: int = Field(0, ge=0, description="new calls in a minute, likewise")
    audio_s_per_hour_per_key: int = Field(0, ge=0, description="seconds of callers' audio in an hour, likewise")
    calls_per_address: int = Field(0, ge=0, description="calls at once from one address; a proxy is one address")
    calls_per_minute_per_address: int = Field(0, ge=0, description="new calls in a minute, likewise")
    audio_s_per_hour_per_address: int = Field(0, ge=0, description="seconds of callers' audio in an hour, likewise")
    trace_one_in: int = Field(100, ge=1, description="with an OTLP endpoint, trace one in this many frames, besides "
                                                      "those that are late or near an event of their call")

    @model_validator(mode="after")
    def _tls_files(self) -> Self:
        check_together(tls_cert=self.tls_cert, tls_key=self.tls_key)
        if self.dev_tls and self.tls_cert:
            raise ValueError("--dev-tls and --tls-cert can't be used together; which certificate should it be?")
        return self
