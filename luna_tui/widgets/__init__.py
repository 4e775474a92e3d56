"""Widgets of the application. They are dumb: view models in, messages up."""
