"""What each verb does: search, transfer, train and compare, and what makes their pairs ready."""
