"""The kit that every command line is made of."""
