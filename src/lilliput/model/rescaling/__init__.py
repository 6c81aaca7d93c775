"""What can be multiplied at one place and divided at another with nothing changed."""
