"""Storage commitment: what archives confirm to have in safe keeping."""
