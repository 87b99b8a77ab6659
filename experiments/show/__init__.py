"""The command that draws the results of a sweep."""
