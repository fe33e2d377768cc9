"""Built-in recipes, and the way from a TARGET on the command line to recipes."""
