"""Orchestrators: pure functions from services and tasks to the next tasks and desired states."""
