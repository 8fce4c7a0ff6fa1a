"""The parts of a procedural portrait; ``glci_dist.data.demo_faces`` puts them together."""
