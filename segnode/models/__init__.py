"""Models: what a model author imports, and the doors a model comes through.

A model is a module with a function `segment(volume: Volume) -> Result`:

    from segnode.models import Result, Volume

    def segment(volume: Volume) -> Result:
        return Result(labelmap=(volume.array > 300).astype("uint8"))

`run = "python:that.module"` under `[[models]]` runs it.
"""

from segnode.dicom.volume import Volume
from segnode.pipeline.ports import Model, Result

__all__ = ["Model", "Result", "Volume"]
