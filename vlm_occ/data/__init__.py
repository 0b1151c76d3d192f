"""Scenes: keyframe folders, nuScenes, Occ3D, Talk2Car, Talk2Occ and the simulator."""
