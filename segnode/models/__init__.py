"""Models: what a model author imports, and the doors a model comes through.

A model is a function `segment(volume: Volume) -> Result`, in a module that may have a function `load()`, which is called once,
when the model's process starts:

    from segnode.models import Result, Volume

    def segment(volume: Volume) -> Result:
        return Result(labelmap=(volume.array > 300).astype("uint8"))

`run = "python:that.module"` under `[[models]]` runs it; `segnode.testing.model_contract` has its test, and `segnode models new`
writes one to begin with. What takes long may say how far it is: `report_progress(0.42, "second fold")`.
"""

from segnode.dicom.volume import Volume
from segnode.models.progress import report_progress
from segnode.pipeline.ports import Model, Result

__all__ = ["Model", "Result", "Volume", "report_progress"]
