"""A trained network becomes a self-contained, verified `.onnx` file. Knows no method by name."""

from oneframe.export.graph import ExportError, export
from oneframe.export.trained import TrainedModel

__all__ = ["ExportError", "TrainedModel", "export"]
