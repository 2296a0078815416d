"""Checkpoints → SavedModels with the interface of the modules on TF Hub."""
