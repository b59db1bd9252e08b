"""Reports of comparisons: pages, figures, traces."""
