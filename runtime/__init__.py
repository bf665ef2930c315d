"""A model file and frames become detections, tracks, files, messages and the live view."""

from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.model import ModelFileError, OnnxModel, load_model

__all__ = ["Detections", "ModelCard", "ModelFileError", "OnnxModel", "Tracks", "load_model"]
