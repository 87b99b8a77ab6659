"""The command that trains a federation and audits it on the way."""
