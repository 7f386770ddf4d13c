"""What turns an ONNX graph into something that a server loads; one module for each engine."""
