"""Images to one of N classes."""

from distpro_cli.tasks.classification.task import Classification

__all__ = ["Classification"]
