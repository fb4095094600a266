"""The gate that the gateway's settings ask for."""

from __future__ import annotations

from pathlib import Path

from services.gateway.calls.callers import CallerLimits
from services.gateway.config import GatewayConfig
from services.gateway.trust.gate import Gate, OpenGate
from services.gateway.trust.guard import Guard
from services.gateway.trust.keys import KeyFile
from services.gateway.trust.tickets import Tickets
from services.gateway.trust.tokens import KeySet, SharedSecret, Tokens


def make_gate(config: GatewayConfig, tickets: Tickets) -> Gate:
    """The gate. Raises ValueError for settings that can't be used."""
    defaults = CallerLimits(config.calls_per_key, config.calls_per_minute_per_key, config.audio_s_per_hour_per_key)
    tokens = _tokens(config)
    if not config.keys_file and tokens is None:
        return OpenGate(tickets, defaults)
    return Guard(KeyFile(Path(config.keys_file)) if config.keys_file else None, tokens, tickets, defaults)


def _tokens(config: GatewayConfig) -> Tokens | None:
    sources = [name for name in ("jwks_url", "jwt_secret_file") if getattr(config, name)]
    if not sources and not config.jwt_issuer:
        return None
    if len(sources) != 1 or not config.jwt_issuer:
        raise ValueError("JWTs need --jwt-issuer and one of --jwks-url and --jwt-secret-file")
    if config.jwks_url:
        return Tokens(config.jwt_issuer, config.jwt_audience, KeySet(config.jwks_url))
    try:
        secret = Path(config.jwt_secret_file).read_bytes().strip()
    except OSError as error:
        raise ValueError(f"--jwt-secret-file: {config.jwt_secret_file} can't be read ({error.strerror})") from None
    return Tokens(config.jwt_issuer, config.jwt_audience, SharedSecret(secret))
