"""Numbers with their protocol: Frechet distances, coverage, diversity, memorisation."""
