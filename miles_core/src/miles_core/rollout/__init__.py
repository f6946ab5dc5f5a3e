"""Generation, grading and conversion to training rows."""
