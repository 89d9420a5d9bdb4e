"""Checkpoints of the authors of CorrMatch and UniMatch: reading and writing their files."""

from .convert import from_official, official_decoder, save_official, to_official

__all__ = ["from_official", "official_decoder", "save_official", "to_official"]
