"""The launcher: model -> ONNX -> engine -> model repository -> running Triton server."""
