"""What the operators require of their arguments."""
