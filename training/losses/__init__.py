"""The terms of the loss: behaviour cloning, latent distillation, policy distillation."""
