"""Images in, normalised tensors out; logits in, label maps out."""
