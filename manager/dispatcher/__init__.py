"""The dispatcher: hands each node its tasks, and takes in what became of them."""
