"""A model file and frames become detections, tracks, files, messages and the live view."""

from oneframe.runtime.card import ModelCard
from oneframe.runtime.detections import Detections, Tracks
from oneframe.runtime.hologram_model import HologramModel
from oneframe.runtime.load import load_model
from oneframe.runtime.model import ModelFileError, OnnxModel

__all__ = ["Detections", "HologramModel", "ModelCard", "ModelFileError", "OnnxModel", "Tracks", "load_model"]
