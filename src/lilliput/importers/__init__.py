"""Networks that come as a file: an ONNX file as a module of torch."""

from lilliput.importers.graph import from_onnx as from_onnx
from lilliput.importers.graph import open_axes as open_axes
