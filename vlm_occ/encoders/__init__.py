"""From sensors to voxel features, pose tokens and voxel tokens."""
