"""The command that reconstructs batches from shared updates."""
