"""Orders of any number of rows that take no memory."""

from __future__ import annotations

import hashlib

ROUNDS = 8


class Shuffle:
    """A permutation of ``range(size)``, each position computed when it is asked for.

    A Feistel network over the smallest even number of bits that holds ``size``, with BLAKE2b as round function (Luby and Rackoff,
    1988), walked until the position lies in range (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains", method 2): on
    average fewer than four walks. Pure in ``size`` and ``seed``, the same on every machine.
    """

    def __init__(self, size: int, seed: str) -> None:
        self._size = size
        self._half = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        key = hashlib.blake2b(seed.encode(), digest_size=32).digest()
        self._rounds = [hashlib.blake2b(key=key, person=bytes([number]), digest_size=8) for number in range(ROUNDS)]

    def __getitem__(self, position: int) -> int:
        """Which row comes at a position."""
        while True:
            position = self._step(position)
            if position < self._size:
                return position

    def _step(self, position: int) -> int:
        left, right = position >> self._half, position & self._mask
        for round_ in self._rounds:
            mixed = round_.copy()
            mixed.update(right.to_bytes(8, "little"))
            left, right = right, left ^ (int.from_bytes(mixed.digest(), "little") & self._mask)
        return left << self._half | right
