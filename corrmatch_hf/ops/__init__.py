"""Pure tensor functions: no state, no model."""
