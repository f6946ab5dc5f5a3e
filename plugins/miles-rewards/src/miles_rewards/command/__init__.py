"""``miles reward``."""
