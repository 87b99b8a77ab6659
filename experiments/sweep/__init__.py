"""The command that runs a grid of audits."""
