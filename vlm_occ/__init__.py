"""VLM-Occ: point at things in a 3D driving scene with words."""
