"""LoTLIP and what it is compared with: tokens, towers, losses, data, evaluation."""
