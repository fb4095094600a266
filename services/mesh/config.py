"""Configuration: one frozen class per service, read from flags and environment, refused at the start when wrong."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from typing_extensions import Self

Port = Annotated[int, Field(ge=0, le=65535)]


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]  # others write INFO
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower)]


def check_host(host: str) -> str:
    """A host without the brackets that [::1] has before a port. Raises ValueError for what is neither name nor address.
    """
    bare = host.strip().strip("[]")
    try:
        bare.encode("idna")  # as the resolver does, whose error is not one of the system
    except UnicodeError:
        raise ValueError(f"{host!r} is not the name of a host") from None
    if any(character in bare for character in "/@ ") or bare.count(":") == 1:
        raise ValueError(f"{host!r} is not an address or the name of a host, without scheme, port and path")
    return bare


def check_together(**settings: str) -> None:
    """Raises ValueError when only some of these are set."""
    missing = [f"--{name.replace('_', '-')}" for name, value in settings.items() if not value]
    if missing and len(missing) < len(settings):
        raise ValueError(f"{' and '.join(missing)}: must be set, too; TLS needs all of them")


Host = Annotated[str, AfterValidator(check_host)]


class ProcessConfig(BaseSettings):
    """What every process has. Flags beat environment variables (MOSHIMESH_ + the name), which beat defaults.

    A variable that is empty counts as unset: compose files write `${X:-}`.
    """

    model_config = SettingsConfigDict(env_prefix="MOSHIMESH_", env_ignore_empty=True, frozen=True, cli_kebab_case=True,
                                      cli_hide_none_type=True, cli_avoid_json=True, extra="ignore")

    log_level: LogLevel = Field("info", description="least severe lines to log")
    log_format: LogFormat = Field("text", description="of log lines: for people, or one JSON object each")


class ServiceConfig(ProcessConfig):
    """What every service has besides."""

    host: Host = Field("0.0.0.0", description="address to listen on, such as 127.0.0.1 or ::1")
    port: Port = Field(0, description="port to listen on; 0 takes a free one")
    drain_s: float = Field(25.0, ge=0, le=3600, description="how long running calls may go on after SIGTERM")
    stall_s: float = Field(10.0, gt=0, le=600, description="end a call whose caller has not read for this long")
    otlp_endpoint: str = Field("", description="OTLP/gRPC endpoint for traces and metrics, such as "
                                               "http://localhost:4317; empty: OTEL_EXPORTER_OTLP_ENDPOINT, else they "
                                               "are not sent")
    metrics_port: Port = Field(0, description="port of /metrics for Prometheus; 0: none")
    metrics_host: Host = Field("127.0.0.1", description="address of that port; 0.0.0.0 lets other machines read it")
    health_port: Port = Field(0, description="port of gRPC health alone, in plain text, for probes that can't do "
                                             "TLS; 0: none")
    peer_ca: str = Field("", description="file with the CA of the mesh's own processes, PEM; those without a "
                                         "certificate of it are refused")
    peer_cert: str = Field("", description="file with this process's certificate of that CA")
    peer_key: str = Field("", description="file with its key")
    reflection: bool = Field(True, description="let anybody ask for the contracts that are served here")

    @model_validator(mode="after")
    def _peer_files(self) -> Self:
        check_together(peer_ca=self.peer_ca, peer_cert=self.peer_cert, peer_key=self.peer_key)
        return self


class EngineConfig(ServiceConfig):
    """What codec and language model have besides."""

    idle_s: float = Field(300.0, gt=0, le=86_400, description="end a session that has sent no frame for this long; "
                                                             "must be more than the gateway's --idle-s")
    yield_cpu: bool = Field(False, description="let the engine run only when no other thread wants to: for a container "
                                               "of its own, since beside other programs it would starve")
    gpu_memory_share: float = Field(1.0, gt=0, le=1, description="most of a GPU's memory that this process may take: "
                                                                 "below 1 where codec and lm are on the same one")


Config = TypeVar("Config", bound=ProcessConfig)


def read_config(kind: type[Config], program: str) -> Config:
    """The configuration from the command line and the environment; ends the process with one line when it is wrong."""
    try:
        return CliApp.run(kind, cli_args=sys.argv[1:])
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together: the input would be all of them, secrets as well
            raise SystemExit(f"{program}: {first['msg'].removeprefix('Value error, ')}") from None
        name = "--" + ".".join(str(part) for part in first["loc"]).replace("_", "-")
        says = first["msg"].removeprefix("Value error, ")  # of a validator of ours
        raise SystemExit(f"{program}: {name}: {says}, got {first['input']!r}") from None
