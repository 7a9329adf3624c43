"""The rules for when a study is complete."""
