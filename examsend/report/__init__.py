"""Shows the result of a command as text or JSON. Untrusted text is escaped for the terminal."""
