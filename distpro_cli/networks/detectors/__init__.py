"""Two-stage detectors on a feature pyramid: Faster R-CNN and Mask R-CNN, with torchvision's heads and losses."""
