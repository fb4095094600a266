"""The table of what codes are worth as speech, which belongs to Mimi's weights: see EncodeReady.speech_table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

FILE = "speech_table.npy"
UNITS = 16  # of the table's numbers make one unit of log odds

Table = npt.NDArray[np.int8]  # [codebooks, entries]


class BadSpeechTable(ValueError):
    """The checkpoint's table cannot be served; the message says what is wrong with it and what to do, in one line."""


def read_speech_table(folder: Path, codebooks: int, entries: int) -> Table | None:
    """The table that lies beside Mimi's weights, if there is one. Raises BadSpeechTable."""
    path = folder / FILE
    try:
        table: Table = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise BadSpeechTable(f"{path} can't be read ({error}); remove it, or learn it again") from None
    if table.dtype != np.int8 or table.ndim != 2 or table.shape[0] < codebooks or table.shape[1] != entries:
        raise BadSpeechTable(f"{path} must be int8 [{codebooks}, {entries}], got {table.dtype} {list(table.shape)}; "
                             "remove it, or learn it again")
    return table[:codebooks]
