"""The command that sets what a defense costs against what it hides."""
