"""What is written and read: predictions, rankings, JSON lines, films and queries."""
