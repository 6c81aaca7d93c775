"""What runs ONNX files on this machine, with arrays as with tensors; without importing torch."""
