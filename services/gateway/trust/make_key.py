"""`python -m services.gateway.trust.make_key FILE NAME`: make an API key, and add its hash to a file."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from services.gateway.trust.keys import KeyRecord, hash_of, new_key, read_keys


def main() -> None:
    """Print the key once. Nobody can print it again: the file has its hash only."""
    parser = argparse.ArgumentParser(description="Make an API key, and add its hash to the file of --keys-file. To "
                                                 "revoke a key, remove its entry.")
    parser.add_argument("file", type=Path, help="made if it is not there")
    parser.add_argument("name", help="names the key in logs, traces and limits: letters, digits, dot, dash, underscore")
    parser.add_argument("--calls", type=int, help="at once")
    parser.add_argument("--calls-per-minute", type=int, help="new ones")
    parser.add_argument("--audio-s-per-hour", type=int, help="seconds of the caller's audio")
    options = parser.parse_args()
    key = new_key()
    try:
        add(options.file, KeyRecord(name=options.name, sha256=hash_of(key), calls=options.calls,
                                    calls_per_minute=options.calls_per_minute,
                                    audio_s_per_hour=options.audio_s_per_hour))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        sys.exit(f"make_key: {first['loc'][0]}: {first['msg']}; write NAME=... with letters, digits and .-_")
    except (ValueError, OSError) as error:
        sys.exit(f"make_key: {error}")
    print(f"the key of {options.name}, which is not shown again:", file=sys.stderr)
    print(key)


def add(path: Path, record: KeyRecord) -> None:
    """Add a key to a file, whole or not at all. Raises ValueError, OSError."""
    records = read_keys(path) if path.exists() else []
    if any(known.name == record.name for known in records):
        raise ValueError(f"{path} has a key named {record.name} already; remove its entry, or choose another name")
    entries = [known.model_dump(exclude_none=True) for known in (*records, record)]
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".keys-", delete=False) as file:
        json.dump({"keys": entries}, file, indent=1)
    if path.exists():
        Path(file.name).chmod(path.stat().st_mode)
    Path(file.name).replace(path)


if __name__ == "__main__":
    main()
