"""A program: decodes damaged codestreams of a codec, the same ones every time; it ends with 0 if each is read or refused."""

import random
import resource
import sys

import imagecodecs
import numpy as np

from segnode.errors import UnreadablePixels
from segnode.seg.codecs import CODECS, DECODERS, FrameShape, jpeg_lossless

MEMORY = 1 << 31

name = sys.argv[1]
resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
if name == "jpeg-lossless":
    encode, decode, choices = lambda frame: bytes(imagecodecs.jpeg8_encode(frame, lossless=True)), jpeg_lossless.decode, (8, 16)
else:
    codec = CODECS[name]
    encode, decode, choices = codec.encode, DECODERS[codec.transfer_syntax_uid], codec.bits
chance = random.Random(name)
for _ in range(500):
    bits = chance.choice(choices)
    rows, columns = chance.choice(((1, 1), (7, 9), (40, 33), (64, 64)))
    noise = np.frombuffer(chance.randbytes(rows * columns * 2), np.uint16).reshape(rows, columns) >> (16 - bits)
    frame = noise.astype(bool if bits == 1 else f"u{bits // 8}")
    damaged = bytearray(encode(frame))
    cut = chance.random() < 0.2
    if cut:
        del damaged[chance.randrange(len(damaged)) :]
    else:
        reach = min(len(damaged), chance.choice((100, len(damaged))))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            damaged[chance.randrange(reach)] = chance.choice((0, 255, chance.randrange(256)))
    try:
        decoded = decode(bytes(damaged), FrameShape(rows, columns, bits))
    except UnreadablePixels:
        continue
    assert decoded.shape == (rows, columns)
    assert bits > 1 or decoded.max() <= 1
    assert not cut or np.array_equal(decoded, frame), "a codestream that was cut is read as another frame"
