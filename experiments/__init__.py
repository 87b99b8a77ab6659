"""Command lines, data, files, plots and reports; run from the checkout."""
