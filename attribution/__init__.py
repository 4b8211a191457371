"""The mathematics, in torch alone: adapters, capture, projection, preconditioning, weighting and scoring."""
