"""Objects in images: boxes and masks, read from COCO JSON and judged by average precision."""

from distpro_cli.tasks.detection.task import Detection

__all__ = ["Detection"]
