"""Forgetting a user, a conversation or an exchange: found everywhere, struck where it is ours, never read again."""
