"""The live page of ``hpc serve``: runs in a browser, from their files alone."""
