"""The explorer: a local page that turns the dials of an estimate."""
