"""How the mesh sets up gRPC, at both ends."""

from __future__ import annotations

# One second of float audio at 48 kHz is 192 kB; nothing in the contracts is larger than a few of those.
MAX_MESSAGE_BYTES = 1 << 20

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a busy port must be an error, not a silent split of the callers
    # Of one connection, which gRPC's clients keep to: more calls wait for one to end. Each that opens costs 0.2 ms, all
    # of them at once; 3000 held up the others' frames for 0.4 s. Tunnels carry many calls in one stream.
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),  # of a connection that says nothing; gRPC's own are two minutes
    # A caller whose network vanished without a goodbye is noticed after 15 s at the most, and its slot comes back.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it, the one above counts for nothing and a minute passes
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # lets clients ping as often
    ("grpc.keepalive_permit_without_calls", 1),
]
# For a port that callers reach, besides those; not for tunnels, in which one message has the frames of many calls.
CALLER_OPTIONS: list[tuple[str, int]] = [
    # gRPC would let a stream's window grow to megabytes. A caller that fills it with tiny messages costs the process
    # seconds before any handler can slow it down: four of them put 20 % of their neighbours' frames late, now none.
    # 64 kB are 0.7 s of float audio, which is enough for live callers up to 600 ms away.
    ("grpc.http2.bdp_probe", 0),
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
