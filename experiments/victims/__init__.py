"""The networks under attack, and what they are made of."""
