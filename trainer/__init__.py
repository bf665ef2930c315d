"""One frame becomes a trained network."""

from oneframe.trainer.crops import Box
from oneframe.trainer.loop import ConvergenceError, Progress, TrainingCancelled
from oneframe.trainer.train import METHODS, train

__all__ = ["METHODS", "Box", "ConvergenceError", "Progress", "TrainingCancelled", "train"]
