"""Records of a run and what is made of them. Never imports torch, hpc, jobs or trainer."""
