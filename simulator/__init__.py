"""Shardwise: what one training step of a large model costs, for any model, cluster and parallel strategy."""

__version__ = "0.1.0"
