"""What a caller of `/api/pcm` is told: each event as JSON, and the model's audio; docs/websocket.md is the contract."""

from __future__ import annotations

import json

from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls import events
from services.gateway.edges.web.answers import described
from services.mesh.errors import MeshError
from services.mesh.recorder import HOP_NAMES

_SAMPLING_NAMES = {"audio_temperature": "temperature", "audio_top_k": "top_k"}  # the others are the same


def told(event: events.Event, format: str) -> str:
    """Any event but speech."""
    match event:
        case events.Ready():
            return json.dumps({
                "type": "ready", "session_id": event.session_id, "model_id": event.model_id,
                "codec_id": event.codec_id, "format": format, "rate": event.sample_rate_hertz,
                "samples_per_frame": event.samples_per_frame,
                "frame_ms": _whole(event.samples_per_frame * 1000 / event.sample_rate_hertz),
                "codebooks": event.codebooks, "delay_frames": event.delay_frames,
                "sampling": _sampling(event.sampling), "resume_handle": event.resume_handle,
                "resume_grace_ms": round(event.resume_grace_s * 1000), "next_sequence": event.next_sequence,
                "priming_frames": event.priming_frames, "frame_due_us": event.frame_due_us})
        case events.Queued() | events.Summary():
            return json.dumps({"type": "queued" if isinstance(event, events.Queued) else "summary", **vars(event)})
        case events.GoAway():
            return json.dumps({"type": "go_away", "time_left_ms": round(event.time_left_s * 1000)})
        case events.Heard():
            return json.dumps({"type": "heard", **vars(event)})
        case events.ResumeStatus():
            return json.dumps({"type": "resume_status", "available": event.available})
        case events.ConversationEvent():
            return json.dumps({"type": "event", "event": event.kind.value, "sequence": event.sequence,
                               "at_ms": event.at_ms})
    raise TypeError(f"an event that this edge does not know: {event!r}")


def frame(speech: events.Speech, with_hops: bool) -> str:
    """What goes before a frame's audio. By hand, since it is for every frame: json.dumps takes 15 us."""
    context = speech.context
    head = f'{{"type": "frame", "sequence": {context.sequence}, "text": {json.dumps(speech.text)}, ' \
           f'"skipped": {speech.frames_skipped}'
    if not with_hops:
        return head + "}"
    hops = ", ".join([
        f'["{HOP_NAMES[hop.hop]}", {hop.received_unix_nanos // 1000}, {hop.dequeued_unix_nanos // 1000}, '
        f'{hop.started_unix_nanos // 1000}, {hop.finished_unix_nanos // 1000}, {hop.batch_size}]'
        for hop in context.hops])
    return f'{head}, "traceparent": {json.dumps(context.traceparent)}, "hops": [{hops}]}}'


def pong(id: int) -> str:
    """The answer to a ping."""
    return f'{{"type": "pong", "id": {id}}}'


def refusal(error: MeshError) -> str:
    """Why the mesh ends the call."""
    return json.dumps({"type": "error", **described(error)})


def _sampling(sampling: lm_pb2.Sampling) -> dict[str, float | int]:
    """Each field that is set, under its name here; floats without the digits that 32 bits don't have."""
    return {_SAMPLING_NAMES.get(field.name, field.name): float(f"{value:.7g}") if isinstance(value, float) else value
            for field, value in sampling.ListFields()}


def _whole(number: float) -> float | int:
    return round(number) if number == round(number) else number
