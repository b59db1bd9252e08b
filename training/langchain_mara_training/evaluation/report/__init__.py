"""Reports of comparisons: the page, its figures, its traces."""
