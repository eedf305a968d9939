"""The tar format: headers in both directions, names, PAX records, sparse maps, and the scanner of layers."""
