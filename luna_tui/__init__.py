"""The terminal application (luna-tui) and the headless command line (luna)."""
