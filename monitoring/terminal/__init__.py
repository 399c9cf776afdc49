"""What a terminal shows of a run: ``watch`` live, ``plain`` and ``summary`` as text, ``to_json`` for
programs."""
