"""A run or a sweep as one HTML file that opens anywhere: no scripts, no network, plots as SVG."""
