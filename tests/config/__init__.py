"""Tests of settings: where they come from, what is checked, what is shown."""
