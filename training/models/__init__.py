"""ResNet-T: LIBERO's transformer policy with FiLM-conditioned ResNet encoders and a Gaussian-mixture head."""
