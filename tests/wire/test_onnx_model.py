"""The model that docs/models.md shows for networks in ONNX, run as it stands there by a real onnxruntime."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydicom import dcmread

from segnode.config import ModelConfig
from segnode.dicom.slices import order_slices, read_volume
from segnode.models.process import ModelProcess

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
AIR_TO_BODY_HU, BODY_TO_BONE_HU = -300.5, 200.5


def scaled(hounsfield: float) -> float:
    """What the model of the documentation makes of a value before the network has it."""
    return (hounsfield + 1000) / 2000


def write_network(file: Path) -> None:
    """A network of one convolution: four scores of each voxel, lines that cross at the two thresholds; the third never wins."""
    body, bone = scaled(AIR_TO_BODY_HU), scaled(BODY_TO_BONE_HU)
    weights = helper.make_tensor("weights", TensorProto.FLOAT, (4, 1, 1, 1, 1), [0, 1, 0, 2])
    biases = helper.make_tensor("biases", TensorProto.FLOAT, (4,), [0, -body, -9, -body - bone])
    node = helper.make_node("Conv", ["image", "weights", "biases"], ["scores"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "slices", "rows", "columns"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4, "slices", "rows", "columns"])
    graph = helper.make_graph([node], "thresholds", [image], [scores], [weights, biases])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def test_documented_model_labels_a_volume(ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the documentation, 30 lines at most, gives the labels of the network."""
    section = DOCS.read_text(encoding="utf-8").partition("## A network in ONNX")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    assert len(code.splitlines()) <= 30
    (tmp_path / "onnx_model.py").write_text(code)
    write_network(tmp_path / "network.onnx")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    slices = order_slices([dcmread(file) for file in ct.iterdir()])
    volume = read_volume(slices, slices.images)
    model = ModelProcess(ModelConfig(name="onnx", run="python:onnx_model", labels="threshold", version="1"), tmp_path / "work")
    try:
        labelmap = model(volume).labelmap
    finally:
        model.close()
    expected = (volume.array > AIR_TO_BODY_HU) + 2 * (volume.array > BODY_TO_BONE_HU).astype(np.uint8)
    np.testing.assert_array_equal(labelmap, expected)
    assert set(np.unique(labelmap)) == {0, 1, 3}
