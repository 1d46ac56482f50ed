#!/usr/bin/env python3
"""The hash murmur3-100k/1 in another language: an oracle that shares no code with the product.

Without arguments it prints the golden vectors (bucket.txt); with a salt it reads user keys from standard input and prints "key<TAB>bucket".
"""
import sys


def murmur3_x86_32(data: bytes, seed: int = 0) -> int:
    c1, c2, mask = 0xCC9E2D51, 0x1B873593, 0xFFFFFFFF
    rotl = lambda x, r: ((x << r) | (x >> (32 - r))) & mask
    h, blocks = seed, len(data) // 4
    for i in range(blocks):
        k = int.from_bytes(data[4 * i : 4 * i + 4], "little") * c1 & mask
        h ^= rotl(k, 15) * c2 & mask
        h = (rotl(h, 13) * 5 + 0xE6546B64) & mask
    tail = data[4 * blocks :]
    if tail:
        k = int.from_bytes(tail, "little") * c1 & mask
        h ^= rotl(k, 15) * c2 & mask
    h ^= len(data)
    h ^= h >> 16
    h = h * 0x85EBCA6B & mask
    h ^= h >> 13
    h = h * 0xC2B2AE35 & mask
    return h ^ h >> 16


def bucket(salt: str, key: str) -> int:
    return murmur3_x86_32(f"{salt}:{key}".encode()) * 100000 >> 32


def main() -> None:
    if len(sys.argv) > 1:
        for line in sys.stdin:
            key = line.rstrip("\n")
            print(f"{key}\t{bucket(sys.argv[1], key)}")
        return
    keys = ["alice", "bob", "user-1", "user-2", "user-10000", "0", "42", "a@example.com", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "zoë", "ユーザー42", "x" * 255]
    keys += ["abcdefghijklmnopqrstuvwxyz"[:n] for n in range(1, 14)]
    for salt in ["checkout", "s", "search-2026", "zahlung.ä"]:
        for key in keys:
            print(f"{salt}\t{key}\t{murmur3_x86_32(f'{salt}:{key}'.encode())}\t{bucket(salt, key)}")


if __name__ == "__main__":
    main()
