"""Model families, one per file, each exporting `FAMILY`: loading, encoding, predicting, and the names of the parts."""
