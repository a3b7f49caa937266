"""Damage as disks, cables and careless people do it, from a seed."""

import random

__all__ = ["mutate"]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three of: flip a bit, set a byte, cut, drop, double, splice or swap a run of bytes."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        run = rng.randint(1, 40)
        match rng.randrange(7):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                del out[max(at, 1) :]
            case 3:
                del out[at : at + run]
            case 4:
                out[at:at] = out[at : at + run]
            case 5:
                out[at : at + run] = out[at : at + run][::-1]
            case 6:
                other = rng.randrange(len(out))
                out[other : other + run] = out[at : at + run]
        if not out:
            return b"\0"
    return bytes(out)
