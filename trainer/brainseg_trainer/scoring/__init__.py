"""How well masks agree with the truth: region by region, scan by scan, and over many scans."""
