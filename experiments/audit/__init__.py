"""One audit: from settings to what an update gave away."""
