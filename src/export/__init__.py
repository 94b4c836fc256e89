"""Writing networks in the formats of other programs."""
