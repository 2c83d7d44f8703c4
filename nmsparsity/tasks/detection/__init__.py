"""Object detection and instance segmentation in the way of COCO, on torchvision's detectors."""
