"""Whole systems: VLM-Occ, the paper's baselines and GroundingOcc."""
