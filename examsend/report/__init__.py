"""A command's result as text or JSON, and text from outside made safe for a terminal."""
