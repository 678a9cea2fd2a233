"""What is lost by keeping some tokens only, on tokens of real photographs: every method, by tasks first.

The tokens are those of EfficientNet-lite0, a small CNN. They say which rule keeps what a reader of tokens
needs, and nothing about the accuracy of a multimodal model.
"""

from benchmarks.quality.study import measure
from benchmarks.quality.tables import plot, tables

__all__ = ["measure", "plot", "tables"]
