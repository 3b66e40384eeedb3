"""Pictures in, uint8 RGB arrays [H, W, 3] out. What is taken, and its limits: docs/pictures.md."""

from __future__ import annotations

from .kinds import Pages, Picture, Video
from .load import load_image, load_images

__all__ = ["Pages", "Picture", "Video", "load_image", "load_images"]
