"""Context parallelism: sequences split over the ranks of a torch.distributed group, for training and inference."""

from stripedhyena2.parallel.context import ContextParallel, parallelize
from stripedhyena2.parallel.layout import KINDS, Layout
from stripedhyena2.parallel.operators import SplitOperators, Strategies
from stripedhyena2.parallel.split_model import SplitModel

__all__ = ["KINDS", "ContextParallel", "Layout", "SplitModel", "SplitOperators", "Strategies", "parallelize"]
