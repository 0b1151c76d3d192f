"""A driving simulator with exact voxels, boxes and language."""
