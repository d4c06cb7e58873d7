"""The output of tasks, read from any manager; see DESIGN.md."""
