"""The processes of a model: as many as it works on volumes at once, each on a device of its own where it has devices."""

from pathlib import Path

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.models.process import ModelProcess
from segnode.pipeline.ports import Result, Run


class ModelPool:
    """The port RunningModel. Processes are started when they are needed, and kept; `hidden` are variables they do not see."""

    def __init__(self, config: ModelConfig, folder: Path, hidden: frozenset[str]) -> None:
        self.config = config
        self.hidden = hidden
        folders = [folder, *(folder / str(number) for number in range(1, len(config.places)))]
        self._processes = [ModelProcess(config, own, hidden, number) for number, own in enumerate(folders)]

    def __call__(self, volume: Volume, run: Run) -> Result:
        """Segment a volume by the process of a run. Raises what ModelProcess does."""
        # After the configuration was read again there may be fewer: then one does the work of two, in turn.
        process = self._processes[run.number % len(self._processes)]
        return process(volume, run.heard, run.prints)

    def check(self) -> None:
        """Start the first process and have it load the model. Raises ConfigError when it cannot."""
        self._processes[0].check()

    def close(self) -> None:
        """End each process once it has done what it is at."""
        for process in self._processes:
            process.close()
