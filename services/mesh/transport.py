"""How the mesh sets up gRPC, at both ends."""

from __future__ import annotations

# One second of float audio at 48 kHz is 192 kB; nothing in the contracts is larger than a few of those.
MAX_MESSAGE_BYTES = 1 << 20

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a busy port must be an error, not a silent split of the callers
    # A caller whose network is cut without notice is detected after 15 s at the most, and its slot is freed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it, the one above counts for nothing and a minute passes
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # lets clients ping as often
    ("grpc.keepalive_permit_without_calls", 1),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_http_proxy", 0),  # a proxy leads out of the mesh; no_proxy has names, these channels addresses
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it, the one above counts for nothing and a minute passes
    ("grpc.http2.max_pings_without_data", 0),
    # A replica that was restarted is found again within a second; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
