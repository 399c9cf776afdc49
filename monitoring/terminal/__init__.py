"""What a terminal shows of runs: ``app`` live, ``plain`` and ``summary`` as text, ``to_json`` for programs."""
