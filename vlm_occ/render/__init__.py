"""Pictures of an answer: the scene from above, and the cameras with the answer's voxels and boxes drawn in.

matplotlib draws the bird's-eye view and Pillow the cameras; neither needs a display.
"""

from vlm_occ.render.birds_eye import draw_birds_eye, top_view
from vlm_occ.render.cameras import draw_camera, draw_cameras
from vlm_occ.render.files import whole_file

__all__ = ["draw_birds_eye", "draw_camera", "draw_cameras", "top_view", "whole_file"]
