"""Changes of bytes, of JSON and of words, that readers may meet."""

from __future__ import annotations

import json
import random
from typing import Any

INTERESTING = [None, True, "", "nan", "inf", "../x", "/etc/passwd", "a\x1b[2Jb", "=cmd()", "\ud800", "x" * 5000, 0, -1]
INTERESTING += [1, 2**31, 2**63, 2**64, 10**40, 1e308, -1e-320, 0.5, [], {}, [[]], {"a": 1}, [1, 2, 3], "gd", "float64"]
WORDS = ["--", "-", "--help", "--epochs", "--alpha", "--out", "--json", "nan", "inf", "-1", "0", "1e400", "9" * 400, ""]
WORDS += ["\udcff", "RUN", "OUT", "RECIPE", "--groups", "(", "a" * 5000, "*", "../..", "\n", "--lr", "--quiet", "é"]
WORDS += [
    "--method",
    "ties",
    "--keep",
    "last:0",
    "--record-at",
    "steps:",
    "--format",
    "html",
    "/dev/null",
    "~",
    "--seed",
]
BYTES = [
    b"\x00",
    b"\xff" * 8,
    b"\x7f" * 8,
    b"{",
    b"}",
    b"[" * 50,
    b'"',
    b"\n",
    b",",
    b"nan",
    b"1e999",
    b"\\ud800",
    b"-1",
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Change an input in one to four ways."""
    for _ in range(chance.randint(1, 4)):
        content = chance.choice([_json, _json, _bytes, _words])(content, chance)
    return content


def _json(content: bytes, chance: random.Random) -> bytes:
    """Change a value of JSON, also where it is the header of a safetensors file."""
    first, end, rest = content.partition(b"\n")
    if first[:1] != b"{" and rest[:1] == b"{":  # a line before it says what it is
        return first + end + _json(rest, chance)
    length = int.from_bytes(content[:8], "little") if len(content) > 8 else 0
    if 8 + length <= len(content) and content[8:9] == b"{":
        header = _changed(content[8 : 8 + length], chance)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    lines = content.split(b"\n")
    if len(lines) > 1 and lines[0][:1] == b"{":
        place = chance.randrange(len(lines))
        lines[place] = _changed(lines[place], chance)
        return b"\n".join(lines)
    return _changed(content, chance)


def _changed(text: bytes, chance: random.Random) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _bytes(text, chance)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        held = waiting.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
        places += [(held, key) for key in keys]
        waiting += [held[key] for key in keys]
    if not places:
        return json.dumps(chance.choice(INTERESTING)).encode()
    held, key = chance.choice(places)
    kind = chance.randrange(4)
    if kind == 0:
        del held[key]
    elif kind == 1 and isinstance(held, dict):
        held[str(chance.choice(INTERESTING))[:100]] = held.pop(key)
    elif kind == 2:
        other, place = chance.choice(places)
        held[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else None
    else:
        held[key] = chance.choice(INTERESTING)
    return json.dumps(value).encode()


def _bytes(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) + 1)
    end = min(len(content), place + chance.choice([1, 1, 2, 8, 100]))
    new = chance.choice([b"", chance.choice(BYTES), chance.randbytes(end - place), content[place:end] * 2])
    if chance.random() < 0.05:
        return content[:place]
    return content[:place] + new + content[end:]


def _words(content: bytes, chance: random.Random) -> bytes:
    words = content.split(b" ")
    place = chance.randrange(len(words))
    words[place : place + chance.randrange(2)] = [chance.choice(WORDS).encode("utf-8", "surrogateescape")]
    return b" ".join(words)
