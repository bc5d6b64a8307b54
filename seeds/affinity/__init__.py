"""Pixel affinities learned from confident cues, and maps that walk along them (irn's semantic half)."""
