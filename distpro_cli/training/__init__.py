"""The loop that every run shares, and where its weights over time come from."""
