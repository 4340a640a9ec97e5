"""Triton with models in Python: body and bone of a CT by Hounsfield units. Usage: serve.py FOLDER HTTP_PORT GRPC_PORT."""

import sys

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def thresholds(values):
    """Body (1) and bone (3)."""
    return (values > -300) + 2 * (values > 200).astype(np.uint8)


def labels(requests):
    """One label for each voxel."""
    return [{"labels": thresholds(request["volume"])} for request in requests]


def scores(requests):
    """A channel for each label, behind the batch."""
    return [{"scores": (thresholds(r["volume"]) == np.arange(4).reshape(-1, 1, 1, 1)).astype(np.float32)} for r in requests]


def broken(requests):
    """What a model says that cannot."""
    raise RuntimeError("there are no weights")


folder, http_port, grpc_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = TritonConfig(
    http_address="127.0.0.1",
    http_port=http_port,
    grpc_address="127.0.0.1",
    grpc_port=grpc_port,
    allow_metrics=False,
    strict_readiness=True,
)
free, fixed, wanted = (-1, -1, -1), (1, 1, 5, 32, 24), (1, 4, 5, 32, 24)
models = (
    (labels, Tensor(name="volume", dtype=np.float32, shape=free), Tensor(name="labels", dtype=np.uint8, shape=free)),
    (
        scores,
        Tensor(name="volume", dtype=np.float16, shape=fixed),
        Tensor(name="scores", dtype=np.float32, shape=wanted),
    ),
    (broken, Tensor(name="volume", dtype=np.int16, shape=free), Tensor(name="labels", dtype=np.int64, shape=free)),
)
with Triton(config=config, workspace=folder) as triton:
    for function, given, given_back in models:
        triton.bind(function.__name__, function, [given], [given_back], config=ModelConfig(batching=False))
    triton.serve()
