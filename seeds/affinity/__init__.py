"""Affinities between pixels, learned from confident cues, and random walks of maps along them (irn's semantic half)."""
