"""Inputs that hold, for parsers whose branches no fuzzer of Python sees: pydantic takes them apart."""

from __future__ import annotations

SEEDS: dict[str, list[bytes]] = {
    "JSON of /api/pcm": [
        b'{"type":"open","format":"s16le","rate":24000,"model":"m","voice":"v","text_prompt":"t","pacing":"live",'
        b'"frames":true,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",'
        b'"sampling":{"text_temperature":0.7,"text_top_k":25,"seed":1}}',
        b'{"type":"open","resume":{"handle":"' + b"A" * 43 + b'","first_sequence":3,"answered_sequence":2}}',
        b'{"type":"settings","sampling":{"text_temperature":0.7}}', b'{"type":"interrupt","hold_ms":400}',
        b'{"type":"say","text":"hello"}', b'{"type":"played","sequence":7}', b'{"type":"ping","id":1}',
        b'{"type":"end"}'],
    "JSON of Live": [
        b'{"type":"session.start","event_id":"e","session":{"model":"m","audio":{"format":{"type":"audio/pcm",'
        b'"rate":24000}}}}\xff\xfe\xff{"type":"session.input_audio.append","audio":"AAAAAAAA"}'
        b'\xff\xfe\xff{"type":"session.input_audio.mute"}\xff\xfe\xff{"type":"session.close"}',
        b'{"type":"session.start","session":{"audio":{"format":{"type":"audio/pcmu","rate":8000}}}}\xff\xfe\xff'
        b'{"type":"session.update","session":{}}\xff\xfe\xff{"type":"session.input_audio.unmute"}'],
    "metadata of /api/chat": [b'{"resume_handle":"' + b"A" * 43 + b'","first_sequence":3,"answered_sequence":2}'],
    "queries": [b"text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&seed=1&resume=1",
                b"format=opus&rate=24000&pacing=live&model=m&voice=v&text_prompt=t", b"resume=again"],
    "key files": [b'{"keys":[{"name":"shop","sha256":"' + b"0" * 64 + b'","calls":3,"calls_per_minute":2}]}'],
}
