"""Teacher and student: what builds them, and the levels that are tapped."""
