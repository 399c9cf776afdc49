"""Engines: what lays a model and its optimizer over the ranks, one per file behind one interface."""

from trainer.parallel.engine import Engine, build, load

__all__ = ["Engine", "build", "load"]
