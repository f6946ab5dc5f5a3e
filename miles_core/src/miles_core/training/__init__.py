"""Training maths that every backend shares. Imports torch."""
