"""Pictures of scored variants: along the genome with genes, and by class."""
