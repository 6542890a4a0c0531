"""Other programs' files: what they read and what they write."""
