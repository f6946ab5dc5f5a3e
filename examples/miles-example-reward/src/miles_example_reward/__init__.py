"""The smallest plugin for miles."""
