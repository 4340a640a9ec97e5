"""Models for MLServer: it imports this from the folder that it is started on."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Thresholds(MLModel):
    """Body and bone of a CT by Hounsfield units, as labels."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer in JSON: MLServer's REST has no binary tensors."""
        values = NumpyCodec.decode_input(payload.inputs[0])
        labels = (values > -300) + 2 * (values > 200).astype(np.uint8)
        outputs = [NumpyCodec.encode_output("labels", labels)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
