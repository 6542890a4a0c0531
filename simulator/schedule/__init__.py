"""In what order: pipeline orders as data, the engine that runs them, and closed forms to check it by."""
