"""The evidence for further-training fidelity and learned weights: four tasks, their truths, our scores and peers'."""
