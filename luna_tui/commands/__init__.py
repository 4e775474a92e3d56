"""One module per verb family of `luna`; thin over engine and daemon, never importing textual."""
