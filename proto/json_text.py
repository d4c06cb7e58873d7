"""Decodes JSON that came from outside: from a client, a registry, an archive, another program.

Each of these may send anything: bytes that are no UTF-8, text that is no JSON, values of the wrong
type, objects nested so deeply that the decoder gives up. Each is an exception of another class,
and one that a caller forgets becomes a traceback. `decode_json` makes one of all. Pure.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from proto.text import printable

T = TypeVar("T")

REASON_CHARACTERS_MAX = 300


class JsonError(ValueError):
    """What is wrong with the JSON: words to follow its name; printable and short."""


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """Decode JSON of a type; `object` takes any.

    Raises:
        JsonError: it is no JSON, of another type, no UTF-8, or nested too deeply.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    except UnicodeError:
        raise JsonError("is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise JsonError(
            f"is not JSON of its kind: {printable(str(error), REASON_CHARACTERS_MAX)}"
        ) from None
