"""Files of which somebody else may be the author: see README.md."""
